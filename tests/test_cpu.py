"""What /proc says of the machines we serve, read from texts as their kernels write them."""

from __future__ import annotations

import platform
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dsmr_export.bench import system
from dsmr_export.errors import DsmrError
from dsmr_export.runtime import cpu

ARM_CORE = (
    "processor\t: {core}\n"
    "BogoMIPS\t: {bogomips}\n"
    "Features\t: {features}\n"
    "CPU implementer\t: 0x41\n"
    "CPU architecture: 8\n"
    "CPU variant\t: 0x0\n"
    "CPU part\t: {part}\n"
    "CPU revision\t: 4\n\n"
)
CORTEX_A53 = {"bogomips": "38.40", "part": "0xd03", "features": "fp asimd evtstrm crc32 cpuid"}
CORTEX_A72 = {"bogomips": "108.00", "part": "0xd08", "features": "fp asimd evtstrm crc32 cpuid"}
CORTEX_A76 = {
    "bogomips": "108.00",
    "part": "0xd0b",
    "features": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
    "asimddp",
}
# What Raspberry Pi OS's kernel writes below the cores; newer ones leave Hardware out.
BOARD = "Revision\t: {revision}\nSerial\t\t: 10000000deadbeef\nModel\t\t: {model}\n"
PI_3 = "Hardware\t: BCM2835\n" + BOARD.format(revision="a02082", model="Raspberry Pi 3 Model B Rev 1.2")
PI_4 = BOARD.format(revision="c03114", model="Raspberry Pi 4 Model B Rev 1.4")
PI_5 = BOARD.format(revision="c04170", model="Raspberry Pi 5 Model B Rev 1.0")

X86_CORE = (
    "processor\t: {core}\n"
    "vendor_id\t: {vendor}\n"
    "cpu family\t: 25\n"
    "model\t\t: 1\n"
    "model name\t: {name}\n"
    "stepping\t: 1\n"
    "flags\t\t: fpu vme de pse sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c rdrand hypervisor {flags}\n"
    "bugs\t\t: sysret_ss_attrs null_seg spectre_v1\n"
    "bogomips\t: 4890.86\n"
    "power management:\n\n"
)
EPYC = {"vendor": "AuthenticAMD", "name": "AMD EPYC", "flags": "bmi1 avx2 smep bmi2 erms umip vaes"}
XEON = {
    "vendor": "GenuineIntel",
    "name": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    "flags": "avx2 avx512f avx_vnni avx512_bf16 avx512vbmi avx512_vnni amx_int8",
}
ALDER_LAKE = {"vendor": "GenuineIntel", "name": "12th Gen Intel(R) Core(TM) i7", "flags": "avx2 avx_vnni"}


def tree(
    root: Path, cpuinfo: str | None = None, model: str | None = None, meminfo: str | None = None
) -> Path:
    """A root folder whose /proc has these texts; None: the file is not there."""
    files = {"proc/cpuinfo": cpuinfo, "proc/device-tree/model": model, "proc/meminfo": meminfo}
    for file, text in files.items():
        if text is not None:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text)
    return root


def cores(text: str, facts: dict[str, str], count: int) -> str:
    return "".join(text.format(core=core, **facts) for core in range(count))


@pytest.mark.parametrize(
    ("cpuinfo", "count", "model", "features"),
    [
        (cores(ARM_CORE, CORTEX_A53, 4) + PI_3, 4, "Raspberry Pi 3 Model B Rev 1.2", {"asimd"}),
        (cores(ARM_CORE, CORTEX_A72, 4) + PI_4, 4, "Raspberry Pi 4 Model B Rev 1.4", {"asimd"}),
        (cores(ARM_CORE, CORTEX_A76, 4) + PI_5, 4, "Raspberry Pi 5 Model B Rev 1.0", {"asimd", "asimddp"}),
        (cores(X86_CORE, EPYC, 2), 2, "AMD EPYC", {"avx2"}),
        (cores(X86_CORE, XEON, 1), 1, XEON["name"], {"avx2", "avx_vnni", "avx512_vnni"}),
        (cores(X86_CORE, ALDER_LAKE, 3), 3, ALDER_LAKE["name"], {"avx2", "avx_vnni"}),
    ],
    ids=["pi-3", "pi-4", "pi-5", "epyc", "xeon-vnni", "avx-vnni"],
)
def test_machines_we_serve(tmp_path: Path, cpuinfo: str, count: int, model: str, features: set[str]) -> None:
    found = cpu.read(tree(tmp_path, cpuinfo, meminfo="MemTotal:        8255436 kB\nMemFree:  1 kB\n"))
    assert (found.cores, found.model, found.features) == (count, model, features)
    assert found.memory_bytes == 8255436 * 1024


def test_device_tree_names_the_board_before_cpuinfo_does(tmp_path: Path) -> None:
    text = cores(X86_CORE, EPYC, 1) + PI_4
    assert cpu.read(tree(tmp_path, text)).model == "Raspberry Pi 4 Model B Rev 1.4"
    # The device tree's strings end with a NUL.
    assert cpu.read(tree(tmp_path, text, "Radxa ROCK 5B\0")).model == "Radxa ROCK 5B"


def test_only_what_every_core_has_counts(tmp_path: Path) -> None:
    """A thread may run on any of them."""
    text = cores(ARM_CORE, CORTEX_A76, 2) + cores(ARM_CORE, CORTEX_A53, 2)
    assert cpu.read(tree(tmp_path, text)).features == {"asimd"}


def test_32_bit_arm_has_none_of_the_features(tmp_path: Path) -> None:
    text = (
        "processor\t: 0\nmodel name\t: ARMv7 Processor rev 4 (v7l)\n"
        "Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae crc32\n"
    )
    found = cpu.read(tree(tmp_path, text))
    assert (found.features, found.model) == (frozenset(), "ARMv7 Processor rev 4 (v7l)")


@pytest.mark.parametrize("cpuinfo", [None, "", "processor\n\0\xff:::\nflags:avx2x\nFeatures :\n"])
def test_what_cannot_be_read_is_unknown(tmp_path: Path, cpuinfo: str | None) -> None:
    found = cpu.read(tree(tmp_path, cpuinfo, meminfo="MemTotal: lots\n"))
    assert (found.features, found.model, found.memory_bytes) == (frozenset(), cpu.UNKNOWN, None)
    assert found.cores >= 1


def test_a_folder_in_place_of_a_file_is_no_error(tmp_path: Path) -> None:
    for file in ("proc/cpuinfo", "proc/meminfo", "proc/device-tree/model"):
        (tmp_path / file).mkdir(parents=True)
    assert cpu.read(tmp_path).model == cpu.UNKNOWN


def test_this_machine() -> None:
    found = cpu.read()
    assert (found.architecture, found.bits) == (platform.machine(), struct.calcsize("P") * 8)
    assert found.features <= set(cpu.FEATURES) and found.cores >= 1
    assert found.memory_bytes is not None and found.memory_bytes > 2**27
    assert system.machine()["processor"] == found.model


PI = cpu.Cpu("aarch64", 64, "Raspberry Pi 5 Model B Rev 1.0", frozenset({"asimd"}), 4, 2**32)


def test_64_bit_systems_pass() -> None:
    cpu.require_64_bit(PI)
    cpu.require_64_bit()  # the tests need onnxruntime, so this one is


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("armv7l", ("a 32-bit system (armv7l)", "no wheels for 32-bit ARM", "64-bit Raspberry Pi OS")),
        ("armv6l", ("a 32-bit system (armv6l)", "64-bit Raspberry Pi OS")),
        # The kernel's word alone would not tell.
        ("aarch64", ("a 32-bit system under a 64-bit kernel (aarch64)", "64-bit Raspberry Pi OS")),
        ("i686", ("a 32-bit system (i686)", "install a 64-bit system and its Python")),
        ("x86_64", ("under a 64-bit kernel (x86_64)", "install a 64-bit system and its Python")),
    ],
)
def test_32_bit_systems_are_refused(architecture: str, words: tuple[str, ...]) -> None:
    with pytest.raises(DsmrError) as refusal:
        cpu.require_64_bit(replace(PI, architecture=architecture, bits=32))
    text = str(refusal.value)
    assert text.startswith("this Python has 32 bits, on ") and "\n" not in text
    assert all(word in text for word in words)


def test_imports_the_standard_library_only() -> None:
    code = "import sys, dsmr_export.runtime.cpu; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(*{name.split('.')[0] for name in sys.modules})"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert set(loaded.split()) - set(bare.split()) - set(sys.stdlib_module_names) <= {"dsmr_export"}
