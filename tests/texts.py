"""Text of many scripts, for whatever reads text."""

import unicodedata

SCRIPTS = {
    "latin": "crème brûlée",
    "decomposed": unicodedata.normalize("NFD", "crème brûlée"),
    "greek": "μήλο και πορτοκάλι",
    "cyrillic": "красное яблоко",
    "arabic": "تفاحة حمراء",
    "hebrew": "תפוח אדום",
    "devanagari": "लाल सेब",
    "thai": "แอปเปิ้ลสีแดง",
    "hangul": "빨간 사과",
    "han": "红苹果和摩托车",
    "kana": "あかいリンゴ",
    "emoji": "🍎🏍️🇫🇷👍🏽",
    "mathematical": "\U0001d4b6\U0001d4c5\U0001d4c1",
    "accents alone": "\u0301\u0302\u0303",
    "special": "[SEP][CLS][MASK][PAD][UNK]",
    "numbers": "1 2 3 ½ ² ٣",
    "unknown letters": "ÿþœßøæđ",
}
