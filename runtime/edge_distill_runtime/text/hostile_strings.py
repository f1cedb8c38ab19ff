"""Strings on which tokenizers disagree: two tokenizers are compared on these."""

# ruff: noqa: E501

from __future__ import annotations

__all__ = ["HOSTILE_STRINGS"]

HOSTILE_STRINGS: tuple[str, ...] = (
    "",
    " ",
    "Hello world",
    " leading and trailing ",
    # Digits
    "1", "12", "123", "1234567890", "3.14159 and 1,000,000 or 10^9", "x1y22z333", "٣٤٥ १२३ ½ ² Ⅷ ①",
    # Contractions and quotes
    "I'm you're he's we've I'd they'll don't", "I'M YOU'RE HE'S WE'VE I'D THEY'LL DON'T", "it’s ‘quoted’ “text”",
    "'s's 'tis o'clock rock'n'roll",
    # White space
    "a  b   c    d     e", "\n", "\n\n", "a\nb\n\nc\n\n\nd", "line \n  indented\n\ttab\t\ttabs", "\r\n windows \r\n",
    "   \n   ", "trailing   ", "a\u00a0b\u2003c\u3000d\u200be", "\t", "\x0b\x0c\x85",
    # Code
    "def f(x: int) -> str:\n    return f\"{x!r}\"  # comment\n", "for (int i=0;i<n;++i){a[i]+=b[i]*c;}",
    "SELECT * FROM t WHERE a<>'b';", "https://example.org/a?b=c&d=%20#e", "C:\\path\\file.txt ../.. ~/",
    "<div class=\"x\">&amp;</div>", "\\boxed{\\frac{1}{2}} $x^2$ \\[ y \\]", "{\"key\": [1, null, true]}",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case", "!!! ??? ... --- ___ *** === ~~~ ``` $$$ +++ |||",
    # Letters with marks, composed and not
    "größer façade naïve Ångström", "e\u0301 a\u0308 n\u0303 o\u0302\u0323", "Z\u0351\u036b\u0343a\u0363l\u0348g\u034bo\u031a",
    "İstanbul ıslak ǅungla ﬁne ﬀ", "Việt Nam tiếng Việt",
    # Emoji: skin tone, joined family, flag, keycap, text and emoji presentation
    "🙂", "👍🏽 👩‍👩‍👧‍👦 🇩🇪 1️⃣ ☺︎ ☺️ 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "a🙂b🙂🙂 c",
    # Scripts: right to left, Chinese, Japanese, Korean, Thai, Hindi, Cyrillic, Greek
    "שלום עולם", "مرحبا بالعالم، كيف الحال؟", "abc \u202eright\u202c def \u200f", "你好，世界！今天天气很好。",
    "こんにちは世界。カタカナ", "안녕하세요 세계", "สวัสดีชาวโลก", "नमस्ते दुनिया", "Привет, мир! ПРИВЕТ", "Γειά σου Κόσμε",
    # Rare code points: private use, unassigned, outside the basic plane, replacement, byte order mark, controls
    "\ue000 \U0010fffd \U0003fffe", "𝒳 𐍈 𠀀 𓀀", "\ufffd \ufeff", "\x00\x01\x7f", "\x1b[31mred\x1b[0m",
    # Bytes that are no text, as Latin-1 shows them
    "".join(map(chr, range(0x80, 0x100))), "Ã©Ã¼â‚¬",
    # Special tokens as plain text
    "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|><|endoftext|>", "<s> </s> <unk> [INST] [/INST] <<SYS>>",
    "<bos><eos><pad><start_of_turn>user\n<end_of_turn>", "<|begin_of_text|><|eot_id|> <|user|>\nHi<|end|>",
    "<think>\nFirst, 2 + 2 = 4.\n</think>\n\n4", "<think></think>", "<|im_start| > < |im_end|> <|im_", "<0x0A> <0xFF>",
    "▁ ▁▁a Ġ Ċ Ġb", "[PAD0] [UNK] [MASK]",
    # Long runs
    "a" * 100, "ab" * 50, "!" * 40, "0" * 40, " " * 40, "\n" * 20, "🙂" * 10,
)  # fmt: skip
