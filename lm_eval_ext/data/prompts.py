"""The words of the `*_cloze` prompts in every language of Global-MMLU.

Those of the languages of the study are in `lm_eval_ext.languages`. The others were written by language models and not
checked by native speakers of every language.
"""

from __future__ import annotations

from typing import NamedTuple

from lm_eval_ext.languages import KNOWN


class Prompt(NamedTuple):
    """How a language writes a question whose answer is scored as text.

    Attributes:
        question, answer: the words before the colon.
        colon: as written in the script.
        delimiter: between the prompt and an option's text (empty in Chinese and Japanese).
    """

    question: str
    answer: str
    colon: str = ":"
    delimiter: str = " "

    @property
    def template(self) -> str:
        """The harness's `doc_to_text`: `Pregunta: {{...}}`, and `Respuesta:` below it."""
        return f"{self.question}{self.colon}{self.delimiter}{{{{question.strip()}}}}\n{self.answer}{self.colon}"


PROMPTS: dict[str, Prompt] = {
    code: Prompt(language.question, language.answer, language.colon, language.delimiter)
    for code, language in KNOWN.items()
} | {
    "am": Prompt("ጥያቄ", "መልስ"),
    "cs": Prompt("Otázka", "Odpověď"),
    "de": Prompt("Frage", "Antwort"),
    "fa": Prompt("سؤال", "پاسخ"),
    "fil": Prompt("Tanong", "Sagot"),
    "ha": Prompt("Tambaya", "Amsa"),
    "he": Prompt("שאלה", "תשובה"),
    "hi": Prompt("प्रश्न", "उत्तर"),
    "ig": Prompt("Ajụjụ", "Azịza"),
    "it": Prompt("Domanda", "Risposta"),
    "ja": Prompt("質問", "回答", colon="：", delimiter=""),
    "ky": Prompt("Суроо", "Жооп"),
    "lt": Prompt("Klausimas", "Atsakymas"),
    "mg": Prompt("Fanontaniana", "Valiny"),
    "ms": Prompt("Soalan", "Jawapan"),
    "ne": Prompt("प्रश्न", "उत्तर"),
    "nl": Prompt("Vraag", "Antwoord"),
    "ny": Prompt("Funso", "Yankho"),
    "pl": Prompt("Pytanie", "Odpowiedź"),
    "pt": Prompt("Pergunta", "Resposta"),
    "ro": Prompt("Întrebare", "Răspuns"),
    "si": Prompt("ප්‍රශ්නය", "පිළිතුර"),
    "sn": Prompt("Mubvunzo", "Mhinduro"),
    "so": Prompt("Su'aal", "Jawaab"),
    "sr": Prompt("Питање", "Одговор"),
    "sv": Prompt("Fråga", "Svar"),
    "sw": Prompt("Swali", "Jibu"),
    "te": Prompt("ప్రశ్న", "సమాధానం"),
    "uk": Prompt("Запитання", "Відповідь"),
    "vi": Prompt("Câu hỏi", "Trả lời"),
    "yo": Prompt("Ìbéèrè", "Ìdáhùn"),
}
