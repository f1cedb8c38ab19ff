"""What the measurements ask."""

from __future__ import annotations

__all__ = ["COPYING", "EASY", "EASY_SHOTS", "EXAMPLES", "ORDINARY", "PROBLEM", "TRACE"]

# About 200 tokens of a small vocabulary: what a short problem and a piece of its solution take.
TRACE = (
    "Anna bakes 24 rolls every morning. On Monday she sells 17 of them and gives 3 to her neighbour. On "
    "Tuesday she sells twice as many as she gave away on Monday, and on Wednesday she bakes a second tray. "
    "Her brother Ben brings 12 buns on Thursday, of which one in four is eaten by the children next door. "
    "On Friday the shop is closed, and on Saturday a guest buys half of all that is left. Let us work out "
    "step by step how many rolls and buns are left over at the end of the week.\n\n"
    "Step 1: On Monday there are 24 rolls. Anna sells 17 and gives away 3, so 24 - 17 - 3 = 4 are left.\n"
    "Step 2: On Tuesday she bakes 24 more, which makes 28. She sells twice 3, that is 6, so 22 are left.\n"
    "Step 3:"
)

# About 300 tokens in the chat form of SmolLM2.
PROBLEM = (
    "A school buys materials for three classes before the year begins. The first class has 24 children, the "
    "second one has 3 children more than the first, and the third one has as many as the two others together, "
    "less 30. Every child gets 2 pencils, 1 ruler and 3 notebooks. Pencils come in boxes of 12 for 4 dollars "
    "a box, rulers cost 80 cents each, and notebooks come in packs of 5 for 6 dollars a pack. The shop takes "
    "10 percent off the price of all notebooks when more than 40 packs are bought, and it brings everything "
    "for 15 dollars, or for nothing when the order is worth more than 500 dollars. Opened boxes and packs "
    "cannot be given back, but what is left over may be kept for the next year. The school has saved 400 "
    "dollars, and the parents of every child give 3 dollars each. How many dollars are left when everything "
    "has been paid? First find out how many children there are, then how many boxes and packs are needed, then "
    "what they cost together, and at last what is left of the money. Write one step a line, check every "
    "product once, and end with a line that says: The answer is N."
)

# Questions and worked solutions for a few-shot prefix.
EXAMPLES = (
    (
        "Tom has 3 boxes with 12 pears each. He eats 5 pears and gives 8 to Mia. How many are left?",
        "There are 3 * 12 = 36 pears. After eating 5 there are 36 - 5 = 31. After giving away 8 there are "
        "31 - 8 = 23. The answer is 23.",
    ),
    (
        "A train leaves at 9:40 and takes 95 minutes. When does it arrive?",
        "95 minutes are 1 hour and 35 minutes. One hour after 9:40 it is 10:40, and 35 minutes later it is "
        "11:15. The answer is 11:15.",
    ),
    (
        "A shirt costs 40 dollars. It is sold for 15 percent less, and a buyer pays 2 dollars for a bag. What "
        "does she pay?",
        "15 percent of 40 dollars are 40 * 0.15 = 6 dollars. The shirt costs 40 - 6 = 34 dollars, and with "
        "the bag it is 34 + 2 = 36. The answer is 36.",
    ),
    (
        "A garden is 14 metres long and 9 metres wide. How long is a fence around it with a gate of 3 metres?",
        "Around the garden it is 2 * (14 + 9) = 46 metres. The gate needs no fence, so 46 - 3 = 43. The "
        "answer is 43.",
    ),
    (
        "Lea reads 18 pages on Monday and half as many on Tuesday. Her book has 120 pages. How many remain?",
        "On Tuesday she reads 18 / 2 = 9 pages. Together these are 18 + 9 = 27, so 120 - 27 = 93 remain. The "
        "answer is 93.",
    ),
)

# Worked answers that show a small model the form, and problems that it mostly answers alike.
EASY_SHOTS = (
    ("What is 4 + 4?", "4 + 4 = 8. The answer is 8."),
    ("How many legs does a spider have?", "A spider has 8 legs. The answer is 8."),
    ("Ben has 6 pens. How many pens does Ben have?", "Ben has 6 pens. The answer is 6."),
)
EASY = (
    "What is 1 + 1?",
    "What is 2 + 2?",
    "What is 2 + 3?",
    "What is 5 + 5?",
    "What is 10 + 10?",
    "What is 20 + 20?",
    "What is 5 * 2?",
    "How many days are in a week?",
    "Ann has 7 cats. How many cats does Ann have?",
    "A bus has 12 seats. How many seats does the bus have?",
    "Mia has 9 coins. How many coins does Mia have?",
    "Tom has 3 apples and buys 2 more. How many apples does he have?",
)

_RESTATE = (
    "Problem: A farmer has 12 cows and 5 goats. Each cow gives 9 litres of milk a day. How many litres of milk "
    "does he get?\n"
    "Given: A farmer has 12 cows and 5 goats. Each cow gives 9 litres of milk a day. How many litres of milk "
    "does he get?\n"
    "Answer: 12 * 9 = 108\n\n"
    "Problem: Lea reads 18 pages on Monday and half as many on Tuesday. Her book has 120 pages. How many pages "
    "are left?\n"
    "Given: Lea reads 18 pages on Monday and half as many on Tuesday. Her book has 120 pages. How many pages "
    "are left?\n"
    "Answer: 120 - 18 - 9 = 93\n\n"
    "Problem: {problem}\nGiven:"
)

# Completions that repeat what stands in the prompt: problems restated before they are solved, text extracted.
COPYING = (
    _RESTATE.format(
        problem="A bakery sells 48 loaves of rye bread and 36 loaves of white bread every day. On Sundays the "
        "bakery sells twice as many loaves of white bread, but no rye bread at all. Each loaf of rye bread "
        "costs 4 dollars and each loaf of white bread costs 3 dollars. How many dollars does the bakery take "
        "in one week?"
    ),
    _RESTATE.format(
        problem="Three painters need 8 days to paint a long wooden fence that is 240 metres long. The first "
        "painter paints 12 metres a day, the second painter paints 10 metres a day, and the third painter "
        "paints the rest. How many metres a day does the third painter paint?"
    ),
    _RESTATE.format(
        problem="Jack has 15 red marbles, 9 blue marbles and 6 green marbles. He gives 4 red marbles to his "
        "sister and loses 2 blue marbles in the garden. His father gives him 3 bags with 7 yellow marbles "
        "each. How many marbles does Jack have now?"
    ),
    "Text: The Danube rises in the Black Forest at Donaueschingen and flows east for 2,850 kilometres through "
    "ten countries. It passes Vienna, Bratislava, Budapest and Belgrade before it reaches the Black Sea. More "
    "than eighty million people live in its basin.\n\n"
    "All sentences of the text, one a line:\n1. The Danube rises in",
)

# Completions that say something new, with as few repetitions as such a small model manages.
ORDINARY = (
    "Photosynthesis is the process by which",
    "The main difference between a violin and a cello is",
    "In the year 2150, the last city on the coast",
    "The history of the printing press begins",
    "A volcano erupts when",
    "Paris, Rome and Athens are three old cities of Europe. Paris",
    "Dear Mr. Miller, thank you for your letter of May 3. I am writing to",
    "def fibonacci(n):",
)
