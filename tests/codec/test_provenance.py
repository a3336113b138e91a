"""The XMP packet: well-formed XML whatever the prompt says."""

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kleinserve.codec.provenance import DIGITAL_SOURCE_TYPE, NAMESPACE, UNWRITABLE, Provenance, packet
from kleinserve.core import Size

IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
HOSTILE = [
    "</klein:Prompt><klein:Seed>1</klein:Seed>",
    '<?xpacket end="w"?>',
    "]]> <![CDATA[ x ]]> <!-- x --> &amp; &#0; &lol;",
    "{namespace} {properties} %s {0}",
    "\"quotes' and\ttabs\r\nand lines\r",
    "right-to-left \u202e and a flag \U0001f1e9\U0001f1f0",
]


def properties(prompt: str, *, with_prompt: bool) -> dict[str, str]:
    """What an XML parser reads from the packet."""
    text = packet(Provenance("a & b", 0, 50, "1.2.3", prompt), Size(64, 4096), with_prompt=with_prompt)
    description = ElementTree.fromstring(text.encode()).find(
        ".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    assert description is not None
    return {element.tag.replace(f"{{{NAMESPACE}}}", ""): element.text or "" for element in description}


def test_the_facts_are_there() -> None:
    """The packet names the IPTC source type, model, seed, steps, size and server version, each as it was given."""
    assert properties("a fox", with_prompt=False) == {
        f"{IPTC}DigitalSourceType": DIGITAL_SOURCE_TYPE,
        "{http://ns.adobe.com/xap/1.0/}CreatorTool": "kleinserve 1.2.3",
        "Model": "a & b",
        "Seed": "0",
        "Steps": "50",
        "Width": "64",
        "Height": "4096",
        "ServerVersion": "1.2.3",
    }


@pytest.mark.parametrize("prompt", HOSTILE)
def test_hostile_prompts_are_only_text(prompt: str) -> None:
    """A prompt of XML, of end marks or of format fields is read back as itself, and adds no property."""
    read = properties(prompt, with_prompt=True)
    assert read.pop("Prompt") == prompt
    assert read == properties("", with_prompt=False)


@settings(deadline=None)
@given(st.text())
def test_any_prompt_is_read_back(prompt: str) -> None:
    """Any text survives, but for the characters that XML cannot hold, which become U+FFFD."""
    assert properties(prompt, with_prompt=True)["Prompt"] == UNWRITABLE.sub("\ufffd", prompt)


@pytest.mark.parametrize("character", ["\0", "\x08", "\x0b", "\x1f", "\ufffe", "\uffff"])
def test_unwritable_characters_are_replaced(character: str) -> None:
    """Control characters, which no XML file may hold, are shown as U+FFFD."""
    assert properties(f"a{character}b", with_prompt=True)["Prompt"] == "a\ufffdb"
