"""The help of LibreOffice in 30 languages: a row per language; the row of the English pages needs the others."""

from __future__ import annotations

from tokenry.lab.assets.row import Asset

_VERSION = "4:7.4.7-1+deb12u14"
_PACKAGES = {  # language of the package: size, SHA-256
    "en-us": (1753504, "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712"),
    "ca": (5713108, "194dfad8a2f1bc76a442a568d3eee13add77338ff081e177f8df6eb95e336ace"),
    "cs": (3250456, "9fcbf9b3cbbc1370d827d5bc59df0227fa95bdf3b5628b907ef5fb4d8d55be6a"),
    "da": (3227248, "53313a9c7a4bb25ff3d648ab629f69144a65adc4f67ad38da6e55b05165618c8"),
    "de": (3293908, "00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f"),
    "el": (3663704, "ed4c905d0df5761be817f59381ce7c48fa50ec9cef5737c83e66aa7d3c898f79"),
    "es": (3271860, "9128a84d83d92c8b1c618d90469d16affddb7d1290b09d42a0c5109cb16f0480"),
    "et": (3163816, "e52d7115195642283a14c052e610957cbed8435f06beb35139823722c8942839"),
    "eu": (3148512, "e88eaa5da5d9254a7c9bc1a6ac89d04758380adc044f9a007f666de68ef9aa91"),
    "fi": (3135816, "47b0bf9820e7eef19de7d56400aae8139de26eca4f3d72f57d6769c751630f26"),
    "fr": (3237008, "c796530d3e95af1ea4d054076682efc8aad2b569ae9513f3d4a776b2df3fd206"),
    "gl": (3229920, "c1cf71cc98ed2c08060bfcf55cbc03d3d72e0fe7c3f5192b034c87cbf6b6e679"),
    "hu": (3329808, "d4ae75812fdeb6f2b03fac6bc0f95d3f6824b75706930e806d41c751e68ffe27"),
    "id": (3121408, "5aa8c2894f8638fb2ec50cce72f81e9559f9baf45845c40b990b7f046e3f73d4"),
    "it": (3183388, "7fa29342a302bb495981fdabf98f3a9c3628123f3f191b2a5c95cb583c9ff212"),
    "ja": (3707444, "7799ace9bfe0845771ed2499913e7f7e521318cf3727c007672e3b020f8eb7b9"),
    "km": (3436660, "58700c6513c15d78e6dbbfda82b05f45fcb5a8acf0832f3dca50918d71e27f50"),
    "ko": (3276556, "7ef2d854e9ed58e6bf861cfa9fa2579555233f9df874baf327fcb07ccd190669"),
    "nl": (3243012, "8b4b49a7d1bd0df3aa4693eeebe3f6886655427eaf736d9289c5ff6fbf489591"),
    "om": (3207236, "97c58a5f6b34a871594c807b034c5d5dce693d10e089a41c5faf1e50cf37bf8b"),
    "pl": (3364192, "27441ce6d1303524b223aa94a17356bf7195f388d9b05a9e5e346866d7983694"),
    "pt": (3228592, "0130802d755de8666c663cc0745ba7a23d546d35a918f349a7a9adb78d16e7a4"),
    "pt-br": (3239640, "600d4294e52a6534be923521aff7b1b9eb7e6ddb7e30b2598ad04b2fe9cf8278"),
    "ru": (3376812, "5a2f75d5b0dfcf660275070647af528a81be28b5d3e9c3ec2d419ef5518db7a2"),
    "sl": (3212980, "98c06e58e4cf90c5ccc98d5d7bb069edbbf64845dcdf485cce24a16598d40c90"),
    "sv": (3189796, "1b34145188f08aff7029fdc1ae378141494743d93cb09d9a3e782a229941ab66"),
    "tr": (3213032, "8fe832104805b66d2dc5c153564bcc55b5a084e10b3c3a3ea773c4b57659bfb8"),
    "vi": (3172992, "fcc4f84cd28d094f8663d1b68b98a7d562f3c71c8beeb71401c4859f1027aaaf"),
    "zh-cn": (3435780, "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee"),
    "zh-tw": (3519328, "f79cb2bee8d8d783efd825051a957b4c97a56dad5a05bde0ee90e66099331209"),
}
_PARTS = ("swriter", "simpress", "schart", "sdraw", "smath")


def _name(package: str) -> str:
    return "libreoffice-help" if package == "en-us" else f"libreoffice-help-{package}"


HELP = tuple(
    Asset(
        name=_name(package),
        title="Help of LibreOffice in English, and in 29 other languages with the rows it needs"
        if package == "en-us"
        else f"Help of LibreOffice ({package}), a part of libreoffice-help",
        kind="text",
        source="debian",
        package=f"libreoffice-help-{package}",
        version=_VERSION,
        filename=f"libreoffice-help-{package}_{_VERSION.replace(':', '%3a')}_all.deb",
        sha256=sha256,
        size=size,
        licence="MPL-2.0",
        members=(*(f"*/text/{part}/*.html" for part in _PARTS), "*/copyright"),
        needs=tuple(_name(other) for other in _PACKAGES if other != package) if package == "en-us" else (),
    )
    for package, (size, sha256) in _PACKAGES.items()
)
"""Rows of the corpus `libreoffice-help`; each package's folder `text` holds the same pages with the same block names."""
