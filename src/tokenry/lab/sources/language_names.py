"""English names of languages by their code, for pages that people read."""

from __future__ import annotations

_NAMES = """
af Afrikaans|am Amharic|ar Arabic|ast Asturian|az Azerbaijani|be Belarusian|bg Bulgarian|bn Bengali|br Breton|bs Bosnian|
ca Catalan|ckb Central Kurdish|cs Czech|cy Welsh|da Danish|de German|dsb Lower Sorbian|el Greek|en English|eo Esperanto|
es Spanish|et Estonian|eu Basque|fa Persian|fi Finnish|fr French|fy West Frisian|ga Irish|gd Scottish Gaelic|gl Galician|
he Hebrew|hi Hindi|hr Croatian|hsb Upper Sorbian|hu Hungarian|hy Armenian|ia Interlingua|id Indonesian|ig Igbo|io Ido|
is Icelandic|it Italian|ja Japanese|ka Georgian|kab Kabyle|kk Kazakh|km Khmer|kn Kannada|ko Korean|ky Kyrgyz|
lb Luxembourgish|lt Lithuanian|lv Latvian|mk Macedonian|ml Malayalam|mn Mongolian|mr Marathi|ms Malay|my Burmese|
nb Norwegian Bokmal|ne Nepali|nl Dutch|nn Norwegian Nynorsk|om Oromo|os Ossetian|pa Punjabi|pl Polish|pt Portuguese|
pt-BR Portuguese, Brazil|ro Romanian|ru Russian|sk Slovak|sl Slovenian|sq Albanian|sr Serbian|sr-Latn Serbian, Latin|
sv Swedish|sw Swahili|ta Tamil|te Telugu|tg Tajik|th Thai|tk Turkmen|tr Turkish|tt Tatar|udm Udmurt|ug Uyghur|
uk Ukrainian|ur Urdu|uz Uzbek|vi Vietnamese|zh Chinese|zh-Hans Chinese, simplified|zh-Hant Chinese, traditional
"""
NAMES: dict[str, str] = {
    code: name for code, _, name in (entry.strip().partition(" ") for entry in _NAMES.replace("\n", "").split("|"))
}


def language_name(code: str) -> str:
    """English name of a language; the code itself when it is not known."""
    return NAMES.get(code, code)
