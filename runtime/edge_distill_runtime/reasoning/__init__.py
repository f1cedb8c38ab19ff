"""What many generations come to: answers, votes, verification, tools."""
