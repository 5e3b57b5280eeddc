"""A report as JUnit XML, the form in which CI services show tests: a suite for each target, a case for each check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as xml

from artifacts import Check
from edgewright import text
from edgewright.report import Report, TargetReport
from edgewright.standing import GOOD

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SKIPPED = ("not assessed", "not for this platform")


def junit(report: Report) -> str:
    """The document. A check without a verdict is a property of its suite, a step that failed an error."""
    root = xml.Element("testsuites", name=_clean(report.recipe.name), time=f"{report.seconds}")
    suites = [_suite(target, report) for target in report.targets]
    root.extend(suites)
    _count(root, list(root.iter("testcase")))
    xml.indent(root)
    return xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(target: TargetReport, report: Report) -> xml.Element:
    name = f"{report.recipe.name}.{target.target}"
    suite = xml.Element("testsuite", name=_clean(name), timestamp=target.created, hostname=_clean(report.host.cpu))
    properties = xml.SubElement(suite, "properties")
    for key, value in (
        ("verdict", target.verdict),
        ("app", text.sizes(target.app_bytes, target.folder_bytes)),
        ("scheme", text.scheme(target)),
        *((figure.name, f"{text.figure(figure)} ({text.obtained(figure)})") for figure in target.figures),
    ):
        xml.SubElement(properties, "property", name=_clean(key), value=_clean(value))
    checks = [*target.checks, *(check for phone in target.phones for check in phone.checks)]
    for check in checks:
        row = text.row(check)
        label = f"{check.label} {row.limit}".strip()
        case = xml.SubElement(suite, "testcase", classname=_clean(f"{name}.{check.group}"), name=_clean(label))
        said = f"{row.figure} ({text.obtained(row)})" + (f": {check.reason}" if check.reason else "")
        if _failed(target, check):
            xml.SubElement(case, "failure", message=_clean(f"{check.verdict}: {said}"))
        elif check.verdict in _SKIPPED or check.verdict is None:
            xml.SubElement(case, "skipped", message=_clean(f"{check.verdict or 'reported only'}: {said}"))
        else:
            xml.SubElement(case, "system-out").text = _clean(said)
    for step in target.failed_steps:
        case = xml.SubElement(suite, "testcase", classname=_clean(f"{name}.steps"), name=_clean(step.step))
        xml.SubElement(case, "error", message=_clean(step.detail)).text = _clean(step.stderr_tail)
    if target.verdict == "not validated":
        case = xml.SubElement(suite, "testcase", classname=_clean(name), name="validation")
        xml.SubElement(case, "skipped", message="not validated")
    _count(suite, list(suite.iter("testcase")))
    return suite


def _failed(target: TargetReport, check: Check) -> bool:
    phone = next((phone for phone in target.phones if phone.profile == check.group), None)
    return check.verdict not in GOOD and (phone is None or phone.verdict == "failed")


def _count(of: xml.Element, cases: Sequence[xml.Element]) -> None:
    of.set("tests", str(len(cases)))
    for kind, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        of.set(kind, str(sum(case.find(tag) is not None for case in cases)))


def _clean(said: str) -> str:
    """Without the characters that no XML document may hold."""
    return _NOT_XML.sub("�", said)
