"""Reading Mamba 2's mixers from a header.

Source: llama.cpp, `build_mamba2_layer`, and what its converters make of the tensors: `ssm_a` is -e^A_log,
`ssm_conv1d` has lost its middle dimension, and the norm has a row for each group.
"""

from __future__ import annotations

from converters.architectures.header import Header
from converters.architectures.mixers import Mamba2
from converters.errors import MalformedFile


def mamba2(header: Header, index: int) -> Mamba2:
    """`blk.<index>.ssm_*`; raises MalformedFile where sizes and shapes disagree."""
    stem, width = f"blk.{index}", header.width
    heads, groups = header.count("ssm.time_step_rank"), header.count("ssm.group_count")
    inner, state = header.count("ssm.inner_size"), header.count("ssm.state_size")
    if not (heads and groups and inner and state) or inner % heads or heads % groups:
        raise MalformedFile(
            f"{header.architecture}.ssm: {inner} numbers for {heads} heads in {groups} groups,"
            f" with states of {state}"
        )
    channels = inner + 2 * groups * state
    kernel = f"{stem}.ssm_conv1d"
    length = header.array(f"{kernel}.weight", channels, 0)[1]
    if length < 2:
        raise MalformedFile(f"tensor '{kernel}.weight' has a kernel of {length}")
    for part in ("ssm_a", "ssm_d"):
        header.array(f"{stem}.{part}", heads, 1)
    header.array(f"{stem}.ssm_norm.weight", groups, inner // groups)
    return Mamba2(
        heads=heads,
        size=inner // heads,
        groups=groups,
        state=state,
        input=header.linear(f"{stem}.ssm_in", columns=width, rows=inner + channels + heads),
        output=header.linear(f"{stem}.ssm_out", columns=inner, rows=width),
        kernel=f"{kernel}.weight",
        kernel_bias=header.vector(f"{kernel}.bias", channels),
        length=length,
        decay=f"{stem}.ssm_a",
        time_bias=header.vector(f"{stem}.ssm_dt.bias", heads),
        skip=f"{stem}.ssm_d",
        norm=f"{stem}.ssm_norm.weight",
    )
