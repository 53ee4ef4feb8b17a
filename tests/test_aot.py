"""The reader of compiled programs counts what the programs do, in programs of known size."""

import json
import textwrap

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerators, aot
from benchmarks.aot import cost, schedule
from benchmarks.aot.hlo import Module
from benchmarks.aot.loops import TripCount
from benchmarks.aot.syntax import ArrayShape


def compiled(function, *arguments):
    return Module(jax.jit(function).lower(*arguments).compile().as_text())


def in_a_loop(text, body, condition, start=0):
    """A program whose loop carries a counter and an array."""
    return Module(
        textwrap.dedent(
            f"""\
            HloModule program
            %body (carry: (s32[], f32[8])) -> (s32[], f32[8]) {{
              %carry = (s32[], f32[8]{{0}}) parameter(0)
              %i = s32[] get-tuple-element(%carry), index=0
              %x = f32[8]{{0}} get-tuple-element(%carry), index=1
              %one = s32[] constant(1)
              %two = s32[] constant(2)
              {body}
              %y = f32[8]{{0}} negate(%x)
              ROOT %out = (s32[], f32[8]{{0}}) tuple(%next, %y)
            }}
            %condition (now: (s32[], f32[8])) -> pred[] {{
              %now = (s32[], f32[8]{{0}}) parameter(0)
              %j = s32[] get-tuple-element(%now), index=0
              %bound = s32[] constant(12)
              {condition}
            }}
            ENTRY %main (p: f32[8]) -> f32[8] {{
              %p = f32[8]{{0}} parameter(0)
              %zero = s32[] constant({start})
              %begin = (s32[], f32[8]{{0}}) tuple(%zero, %p)
              %loop = (s32[], f32[8]{{0}}) while(%begin), condition=%condition, body=%body{text}
              ROOT %result = f32[8]{{0}} get-tuple-element(%loop), index=1
            }}
            """
        )
    )


BY_ONE = "%next = s32[] add(%i, %one)"
BELOW = "ROOT %less = pred[] compare(%j, %bound), direction=LT"


def times_of(module, opcode):
    return [x.times for x in module.executed if x.operation.opcode == opcode]


@pytest.mark.parametrize(
    ("body", "condition", "start", "expected"),
    [
        (BY_ONE, BELOW, 0, 12),
        (BY_ONE, BELOW, 5, 7),
        (BY_ONE, BELOW.replace("LT", "LE"), 0, 13),
        ("%next = s32[] add(%two, %i)", BELOW, 1, 6),
        ("%next = s32[] subtract(%i, %one)", BELOW.replace("LT", "GT"), 20, 8),
        (BY_ONE, "ROOT %less = pred[] compare(%bound, %j), direction=GT", 0, 12),
    ],
)
def test_trip_counts_follow_from_start_step_and_bound(body, condition, start, expected):
    module = in_a_loop("", body, condition, start)
    assert times_of(module, "negate") == [expected]
    assert module.loops == {"loop": TripCount(expected, "known")}


def test_the_compilers_own_trip_count_comes_first():
    told = ', backend_config={"known_trip_count":{"n":"7"}}'
    module = in_a_loop(told, BY_ONE, BELOW)
    assert times_of(module, "negate") == [7]
    # A loop of known length does not ask its condition.
    assert times_of(module, "compare") == []


def test_a_loop_that_may_end_early_counts_up_to_its_bound():
    alive = """%alive = pred[] custom-call(%now), custom_call_target="any"
              %less = pred[] compare(%j, %bound), direction=LT
              ROOT %both = pred[] and(%less, %alive)"""
    module = in_a_loop("", BY_ONE, alive)
    assert times_of(module, "negate") == [12]
    assert times_of(module, "custom-call") == [13]
    assert module.loops_of_kind("bound") == {"loop": 12}


def test_a_loop_without_a_bound_counts_once_and_is_named():
    module = in_a_loop("", BY_ONE, 'ROOT %alive = pred[] custom-call(%now), custom_call_target="x"')
    assert times_of(module, "negate") == [1]
    assert module.loops_of_kind("unknown") == {"loop": 1}


def test_nested_loops_of_a_compiled_program_multiply():
    def program(x):
        def outer(x, _):
            return jax.lax.scan(lambda x, _: (jnp.sort(jnp.sin(x)), None), x, length=7)[0], None

        return jax.lax.scan(outer, x, length=5)[0]

    module = compiled(program, jnp.ones(16))
    assert sorted(x.count for x in module.loops.values()) == [5, 7]
    assert times_of(module, "sort") == [35]


def test_a_data_dependent_loop_of_a_compiled_program_counts_up_to_its_bound():
    def program(x):
        return jax.lax.while_loop(
            lambda carry: (carry[0] < 40) & jnp.any(carry[1] < 3.0),
            lambda carry: (carry[0] + 1, carry[1] * 1.5),
            (0, x),
        )

    module = compiled(program, jnp.ones(16))
    assert list(module.loops.values()) == [TripCount(40, "bound")]


def test_of_branches_the_longest_counts():
    def program(x, which):
        return jax.lax.switch(
            which,
            [lambda x: x, lambda x: jax.lax.fori_loop(0, 9, lambda _, x: jnp.sort(jnp.sin(x)), x)],
            x,
        )

    module = compiled(program, jnp.ones(16), 0)
    assert sum(times_of(module, "sort")) == 9


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (ArrayShape("f32", (100, 3), "1,0"), 1200),
        (ArrayShape("pred", (7,), "0"), 7),
        (ArrayShape("s32", (), ""), 4),
        (ArrayShape("bf16", (2, 3), "1,0:T(8,128)(2,1)"), 8 * 128 * 2),
        (ArrayShape("f32", (100, 3), "1,0:T(8,128)"), 104 * 128 * 4),
        # The last axis of the tile lies along the first axis of the array.
        (ArrayShape("f32", (100, 3), "0,1:T(4,128)"), 128 * 4 * 4),
        (ArrayShape("s4", (6,), "0"), 6),
    ],
)
def test_bytes_contain_what_pads_tiles(array, expected):
    assert array.nbytes == expected


FUSED = """\
HloModule program
%read_a_row (table: f32[100,32], row: s32[]) -> f32[1,32] {
  %table = f32[100,32]{1,0} parameter(0)
  %row = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,32]{1,0} dynamic-slice(%table, %row, %zero), dynamic_slice_sizes={1,32}
  ROOT %negated = f32[1,32]{1,0} negate(%slice)
}
%write_a_row (old: f32[100,32], new: f32[1,32], at: s32[]) -> f32[100,32] {
  %old = f32[100,32]{1,0} parameter(0)
  %new = f32[1,32]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %nil = s32[] constant(0)
  ROOT %update = f32[100,32]{1,0} dynamic-update-slice(%old, %new, %at, %nil)
}
%sorted (keys: u32[8192]) -> u32[8192] {
  %keys = u32[8192]{0} parameter(0)
  ROOT %sort = u32[8192]{0} sort(%keys), dimensions={0}, to_apply=%less
}
ENTRY %main (a: f32[100,32], i: s32[], k: u32[8192]) -> f32[100,32] {
  %a = f32[100,32]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %k = u32[8192]{0} parameter(2)
  %row.1 = f32[1,32]{1,0} fusion(%a, %i), kind=kLoop, calls=%read_a_row
  %same = f32[1,32]{1,0} bitcast(%row.1)
  %shuffled = u32[8192]{0} fusion(%k), kind=kCustom, calls=%sorted
  ROOT %b = f32[100,32]{1,0} fusion(%a, %same, %i), kind=kLoop, calls=%write_a_row
}
"""


def test_a_kernel_reads_and_writes_the_slices_that_it_touches():
    module = Module(FUSED)
    found = cost.of_gpu(module, bandwidth=1e12)
    row, index, keys = 32 * 4, 4, 8192 * 4
    assert found.bytes == (row + index + row) + (row + index + row) + 2 * keys


def test_the_workspace_of_a_library_call_is_no_traffic():
    call = 'custom-call(%same, %k), custom_call_target="__cublas$lt$matmul"'
    text = FUSED.replace(
        "  %shuffled =", f"  %product = (f32[4,8]{{1,0}}, s8[4194304]{{0}}) {call}\n  %shuffled ="
    )
    before, after = (cost.of_gpu(Module(x), bandwidth=1e12) for x in (FUSED, text))
    assert after.kernels == before.kernels + 1
    assert after.bytes == before.bytes + 32 * 4 + 8192 * 4 + 4 * 8 * 4


def test_a_sort_is_many_kernels_and_a_bitcast_is_none():
    """In a bitonic sort each comparison across tiles of 2,048 is a kernel. Those in a tile share
    one: one for all stages up to 2,048, then 1 + 1 and 2 + 1."""
    module = Module(FUSED)
    found = cost.of_gpu(module, bandwidth=1e12)
    assert found.kernels == 2 + (1 + (1 + 1) + (2 + 1))
    assert found.seconds == pytest.approx(found.kernels * cost.LAUNCH_SECONDS)


def test_a_large_kernel_takes_the_time_of_its_bytes():
    module = compiled(lambda x: x + 1, jnp.ones(2**20))
    found = cost.of_gpu(module, bandwidth=1e9)
    assert found.seconds == pytest.approx(2 * 4 * 2**20 / 1e9)


def test_collectives_are_listed_by_kind_and_size_in_loops_and_outside():
    message = """%sum.1 = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add
              %next = s32[] add(%i, %one)"""
    found = cost.of_gpu(in_a_loop("", message, BELOW), bandwidth=1e12)
    assert found.collectives == [{"kind": "all-reduce", "bytes": 32, "count": 12}]
    assert found.collectives_at_end == []
    gathered = FUSED.replace("bitcast(%row.1)", "all-gather(%row.1), dimensions={0}")
    found = cost.of_gpu(Module(gathered), bandwidth=1e12)
    assert found.collectives == []
    assert found.collectives_at_end == [{"kind": "all-gather", "bytes": 128, "count": 1}]


def test_cycles_are_the_longer_of_estimate_and_schedule():
    estimated = """%next = s32[] add(%i, %one)
              %a = f32[8]{0} sine(%x), backend_config={"window_config":{"estimated_cycles":"100"}}
              %b = f32[8]{0} cosine(%x), backend_config={"window_config":{"estimated_cycles":"30"}}
              %c = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call\""""
    module = in_a_loop("", estimated, BELOW)
    scheduled = {"a": 10, "b": 50, "c": 5}
    found = cost.of_tpu(module, clock=1e6, scheduled=scheduled)
    assert found.kernels == 12 * 3
    assert found.cycles == 12 * (100 + 50 + 5)
    assert (found.estimated_cycles, found.scheduled_cycles) == (12 * 130, 12 * 65)
    assert found.seconds == pytest.approx(12 * 155e-6)


BUNDLES = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %s1_s0 = smov 0 }
   0x1 LB: > { %s2_s0 = sphi %s1_s0, %s3_s0 /* Start region 7 :: Start region 8 */ }
   0x2   : > { %s3_s0 = sadd.s32 1, %s2_s0  ;;  %v1 = vld [vmem:[%s9]] /* a note
that goes on */ }
   0x3 LB: >> { %v2 = vmul %v1, %v1 } /* Start region 11 */
   0x4   : >> { %p2_p1 = scmp.ge.s32.totalorder %s3_s0, 3 /* loop exit test */ }
   0x5   : >> { %10 = sbr.rel (!%p2_p1) target = $region11 }
   0x6   : >> {}
   0x7   : >> {}
   0x8   : >> {}
   0x9   : >> {}
   0xa   : > { %p1_p0 = scmp.ge.s32.totalorder %s3_s0, 10 }
   0xb   : > { %11 = sbr.rel (!%p1_p0) target = $region8 }
   0xc   :  {}
   0xd   :  {}
   0xe   :  {}
   0xf   :  {}
  0x10   :  { %v3 = vst [vmem:[%s9]] }
"""


def test_a_schedule_counts_bundles_as_often_as_their_loops_turn():
    assert schedule.length(BUNDLES) == 1 + 10 * (2 + 3 * 7 + 6) + 1


def test_a_loop_of_a_schedule_whose_turns_are_unknown_counts_once():
    unknown = BUNDLES.replace("%s3_s0, 3 ", "%s3_s0, %s4_s1 ")
    assert schedule.length(unknown) == 1 + 10 * (2 + 7 + 6) + 1


def test_equal_operations_share_the_schedule_of_one(tmp_path):
    text = FUSED.replace(
        "  %same =",
        "  %row.2 = f32[1,32]{1,0} fusion(%a, %i), kind=kLoop, calls=%read_a_row\n  %same =",
    )
    (tmp_path / "123-row.1-01-final_bundles.txt").write_text(BUNDLES)
    (tmp_path / "123-row.1-00-schedule-analysis_final_bundles.txt").write_text("totals")
    module = Module(text)
    lengths = schedule.lengths(tmp_path, module)
    assert lengths["row.1"] == lengths["row.2"] == schedule.length(BUNDLES)
    assert lengths["b"] == lengths["shuffled"] == 0


def row(program, target):
    """A row as a compiler's process returns it."""
    cycles = 3_000_000 if target == "v5e-4" else None
    return {
        "program": program,
        "target": target,
        "kernels": 1400,
        "bytes": 2_000_000,
        "cycles": cycles,
        "estimated_cycles": cycles,
        "scheduled_cycles": cycles,
        "updates_per_second_estimate": 500.0,
        "memory_bytes": 4_000_000,
        "collectives": [{"kind": "all-reduce", "bytes": 64, "count": 1.0}] if cycles else [],
        "compile_seconds": 1.0,
    }


def test_programs_are_compiled_for_the_targets_that_they_are_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(aot, "row_of", row)
    out = tmp_path / "result.json"
    programs = "exact,pg-tabular-1024-envs-sharded"
    accelerators.main(["--out", str(out), "--programs", programs, "--targets", "h100,v5e-4"])
    result = json.loads(out.read_text())
    assert result["rows"] == [row("exact", "h100"), row("pg-tabular-1024-envs-sharded", "v5e-4")]
    assert result["versions"]["jax"] == jax.__version__
    assert result["model"]["cycles_per_second"]["v5e-4"] == 1.5e9
    assert "compiler's estimate" in capsys.readouterr().out


def test_unknown_programs_and_targets_are_refused(tmp_path, capsys):
    for option, known in (("programs", "exact"), ("targets", "h100")):
        with pytest.raises(SystemExit):
            accelerators.main(["--out", str(tmp_path / "x"), f"--{option}", f"{known},nothing"])
        assert "got 'nothing'" in capsys.readouterr().err
