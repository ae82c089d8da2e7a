"""Whatever stands in a caption file: a caption, or one sentence."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.data.images import scan_folder
from jaxbooth.errors import UserError
from tests.made_up_images import put

KEY = "--data.instance-dir"


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    name=st.sampled_from(["metadata.jsonl", "metadata.csv", "a.txt", "a.caption"]),
    content=st.one_of(
        st.binary(max_size=60),
        st.lists(st.text(max_size=12), max_size=4).map(
            lambda cells: ("file_name,text\na.png," + ",".join(cells)).encode()
        ),
        st.dictionaries(
            st.sampled_from(["file_name", "text", "caption", "other"]),
            st.one_of(
                st.none(), st.booleans(), st.floats(), st.text(max_size=9), st.sampled_from(["a.png", "./a.png"])
            ),
        ).map(lambda entry: json.dumps(entry).encode()),
    ),
)
def test_whatever_stands_in_a_caption_file_is_a_caption_or_one_sentence(tmp_path_factory, name, content):
    folder = tmp_path_factory.mktemp("any")
    put(folder / "a.png")
    (folder / name).write_bytes(content)
    try:
        (image,) = scan_folder(folder, "THE PROMPT", KEY).images
    except UserError as error:
        sentence = str(error).replace(str(folder), "")
        assert 0 < len(sentence) <= 500
    else:
        assert image.caption.strip()
        assert image.caption != "THE PROMPT" or not content.strip()  # an empty list has no caption to lose
