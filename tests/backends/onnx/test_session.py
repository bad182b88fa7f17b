from __future__ import annotations

import os

from backends.onnx.session import physical_cores, session_options


def test_threads_default_to_the_cores_this_process_may_use():
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
    assert session_options(threads=0, force_fp32=False).intra_op_num_threads == physical_cores()
    assert session_options(threads=3, force_fp32=False).intra_op_num_threads == 3


def test_no_spinning_and_fp32_only_when_asked():
    key = "mlas.qnbit.force_fp32"
    options = session_options(threads=1, force_fp32=True)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry(key) == "1"
    plain = session_options(threads=1, force_fp32=False)
    try:
        assert plain.get_session_config_entry(key) != "1"
    except RuntimeError:
        return  # not set at all
