"""What made an image, as the XMP packet that its file carries. Text only: knows nothing of Pillow or file formats."""

import re
from dataclasses import dataclass
from xml.sax.saxutils import escape

from kleinserve.core import Size

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
NAMESPACE = "urn:klein:v1#"  # of the facts for which XMP has no common name

# Everything that XML 1.0 has no way to write, not even as a character reference.
UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about=""
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:klein="{namespace}">
{properties}
</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""  # the id is XMP's own constant, the same in every packet


@dataclass(frozen=True)
class Provenance:
    """What made the image; the prompt is written only when the request asked for it."""

    model: str
    seed: int
    steps: int
    server_version: str
    prompt: str


def packet(provenance: Provenance, size: Size, *, with_prompt: bool) -> str:
    """The XMP packet: the same facts give the same text."""
    properties = {
        "Iptc4xmpExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
        "xmp:CreatorTool": f"kleinserve {provenance.server_version}",
        "klein:Model": provenance.model,
        "klein:Seed": str(provenance.seed),
        "klein:Steps": str(provenance.steps),
        "klein:Width": str(size.width),
        "klein:Height": str(size.height),
        "klein:ServerVersion": provenance.server_version,
    }
    if with_prompt:
        properties["klein:Prompt"] = provenance.prompt
    lines = (f"<{name}>{_escaped(value)}</{name}>" for name, value in properties.items())
    return PACKET.format(namespace=NAMESPACE, properties="\n".join(lines))


def _escaped(text: str) -> str:
    """Text that an XML parser gives back unchanged, but for what XML cannot hold, which becomes U+FFFD."""
    return escape(UNWRITABLE.sub("\ufffd", text), {"\r": "&#13;"})
