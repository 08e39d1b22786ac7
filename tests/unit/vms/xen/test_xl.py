"""What xl prints, as Debian 12's does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from qfilexchg.dom0.vms.hypervisor import HypervisorError, VmId
from qfilexchg.dom0.vms.xen import xl
from qfilexchg.dom0.vms.xen.xl import Listed, parse_info, parse_list
from qfilexchg.protocol.names import DomainId

HEADER = f"{'Name':40}    ID   Mem VCPUs\tState\tTime(s)   {'UUID':31} Reason-Code\tSecurity Label"
DOM0 = f"{'Domain-0':40}     0  1024     2     r-----      67.1 {UUID(int=0)}        -                -"
WORK = f"{'work':40}    12   300     1     --p---       2.0 1b4e28ba-2fa1-11d2-883f-0016d3cca427        -                -"
UUID_OF_WORK = UUID("1b4e28ba-2fa1-11d2-883f-0016d3cca427")


def listed(line: str) -> Listed:
    (found,) = parse_list(f"{HEADER}\n{line}\n")
    return found


def test_every_domain_is_read() -> None:
    dom0, work = parse_list(f"{HEADER}\n{DOM0}\n{WORK}\n")
    assert (dom0.id.domain, dom0.name, dom0.runs) == (0, "Domain-0", True)
    assert work == Listed(VmId(DomainId(12), UUID_OF_WORK), "work", paused=True, shut_down=False, dying=False)


@pytest.mark.parametrize(("letters", "runs"), [("r-----", True), ("-b----", True), ("---sc-", False), ("---s--", False), ("---srd", False)])
def test_what_has_shut_down_or_is_dying_does_not_run(letters: str, runs: bool) -> None:
    assert listed(WORK.replace("--p---", letters).replace("       -  ", "       1  ")).runs is runs


def test_what_is_being_saved_is_told_from_what_has_ended() -> None:
    assert listed(WORK.replace("--p---", "---ss-")).runs
    assert not listed(WORK.replace("--p---", "---sr-")).runs and not listed(WORK.replace("--p---", "---ssd")).runs


def test_a_name_with_blanks_or_numbers_in_it_is_read_as_it_is() -> None:
    assert listed(WORK.replace("work     ", "my VM 1 2")).name == "my VM 1 2"
    assert listed(WORK.replace("work  ", "(null)")).name == "(null)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "libxl: error: something\n",
        f"{HEADER}\nwork 12 300\n",
        f"{HEADER}\n{WORK.replace(' 12 ', ' 99999 ')}\n",
        f"{HEADER}\n{WORK.replace('--p---', '--p--')}\n",
        f"{HEADER}\n{WORK}\nand more\n",
    ],
)
def test_what_is_not_understood_is_an_error(text: str) -> None:
    with pytest.raises(HypervisorError):
        parse_list(text)


def test_the_computer_is_read() -> None:
    text = (
        "release                : 6.1.0\nnr_cpus                : 2\nhw_caps                : 0:1:2\nvirt_caps              : pv hvm\n"
        "free_memory            : 2014\nxen_version            : 4.17.7\nxen_commandline        : dom0_mem=1G,max:1G\n"
    )
    info = parse_info(text)
    assert (info.free_memory_mib, sorted(info.virt_caps), info.xen_version, info.processors) == (2014, ["hvm", "pv"], "4.17.7", 2)
    with pytest.raises(HypervisorError):
        parse_info(text.replace("2014", "much"))
    with pytest.raises(HypervisorError):
        parse_info(text.replace("virt_caps", "other_caps"))


async def test_without_xl_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("qfilexchg.dom0.programs._SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HypervisorError, match="xen-utils-common"):
        await xl.run("list", deadline_s=1)


async def test_a_failure_is_told_in_xls_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "xl"
    await asyncio.to_thread(program.write_text, "#!/bin/sh\necho libxl: error: first >&2\necho libxl: error: last >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(HypervisorError, match=r"xl destroy failed with exit status 1: .*last") as raised:
        await xl.run("destroy", "1", deadline_s=5)
    assert raised.value.detail.endswith("last")
