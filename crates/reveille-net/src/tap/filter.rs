//! Classic BPF programs that say which of a guest's frames are copied to the daemon: few, and none of their contents.

use std::net::Ipv4Addr;

use socket2::SockFilter;

use super::device::PROBE_SOURCE;

/// Bytes of a frame that are copied: Ethernet, IPv6 or IPv4 with options, TCP without.
const SNAP_BYTES: u32 = 128;

const LD_WORD: u16 = 0x20;
const LD_HALF: u16 = 0x28;
const LD_BYTE: u16 = 0x30;
/// Loads relative to X.
const LD_BYTE_X: u16 = 0x50;
/// X = 4 × (low nibble).
const LDX_IPV4_HEAD: u16 = 0xb1;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

const SYN_FIN_RST: u32 = 0x07;

/// One instruction, its jumps by the names of where they lead.
#[derive(Clone, Copy)]
struct Line {
    label: &'static str,
    code: u16,
    k: u32,
    yes: &'static str,
    no: &'static str,
}

/// Labels that every program ends with.
const TAKE: &str = "take";
const LEAVE: &str = "leave";
/// The line after this one.
const NEXT: &str = "";

fn load(code: u16, k: u32) -> Line {
    Line { label: NEXT, code, k, yes: NEXT, no: NEXT }
}

fn test(code: u16, k: u32, yes: &'static str, no: &'static str) -> Line {
    Line { label: NEXT, code, k, yes, no }
}

fn at(label: &'static str, line: Line) -> Line {
    Line { label, ..line }
}

/// Nothing.
pub(super) fn nothing() -> Vec<SockFilter> {
    vec![SockFilter::new(RETURN, 0, 0, 0)]
}

/// TCP segments with SYN, FIN or RST of anybody but the daemon's own looks.
pub(super) fn ends() -> Vec<SockFilter> {
    let probe = PROBE_SOURCE.to_bits();
    assemble(&[
        load(LD_HALF, 12),
        test(JUMP_EQUAL, 0x86dd, "v6", NEXT),
        test(JUMP_EQUAL, 0x0800, NEXT, LEAVE),
        load(LD_BYTE, 23),
        test(JUMP_EQUAL, 6, NEXT, LEAVE),
        load(LD_WORD, 26),
        test(JUMP_EQUAL, probe, LEAVE, NEXT),
        load(LD_WORD, 30),
        test(JUMP_EQUAL, probe, LEAVE, NEXT),
        load(LD_HALF, 20),
        test(JUMP_SET, 0x1fff, LEAVE, NEXT),
        load(LDX_IPV4_HEAD, 14),
        load(LD_BYTE_X, 14 + 13),
        test(JUMP_SET, SYN_FIN_RST, TAKE, LEAVE),
        at("v6", load(LD_BYTE, 20)),
        test(JUMP_EQUAL, 6, NEXT, LEAVE),
        load(LD_BYTE, 14 + 40 + 13),
        test(JUMP_SET, SYN_FIN_RST, TAKE, LEAVE),
    ])
}

/// IP packets from one to another, without neighbour discovery and the daemon's own looks; with `to`, only those to
/// that address (and all of IPv6).
pub(super) fn packets(to: Option<Ipv4Addr>) -> Vec<SockFilter> {
    let probe = PROBE_SOURCE.to_bits();
    let (to, only) = to.map_or((0, TAKE), |to| (to.to_bits(), LEAVE));
    assemble(&[
        load(LD_BYTE, 0),
        test(JUMP_SET, 1, LEAVE, NEXT),
        load(LD_HALF, 12),
        test(JUMP_EQUAL, 0x86dd, "v6", NEXT),
        test(JUMP_EQUAL, 0x0800, NEXT, LEAVE),
        load(LD_WORD, 26),
        test(JUMP_EQUAL, probe, LEAVE, NEXT),
        load(LD_WORD, 30),
        test(JUMP_EQUAL, probe, LEAVE, NEXT),
        test(JUMP_EQUAL, to, TAKE, only),
        at("v6", load(LD_BYTE, 20)),
        test(JUMP_EQUAL, 58, NEXT, TAKE),
        load(LD_BYTE, 14 + 40),
        // Echo request and reply; the rest is neighbour discovery and errors.
        test(JUMP_EQUAL, 128, TAKE, NEXT),
        test(JUMP_EQUAL, 129, TAKE, LEAVE),
    ])
}

/// Turns labels into distances. Programs are short and made here alone: a label that is not there leads to the end,
/// where nothing is taken.
fn assemble(lines: &[Line]) -> Vec<SockFilter> {
    let leave = lines.len() + 1;
    let place = |from: usize, label: &str| {
        let to = match label {
            NEXT => from + 1,
            TAKE => lines.len(),
            LEAVE => leave,
            label => lines.iter().position(|line| line.label == label).unwrap_or(leave),
        };
        u8::try_from(to.saturating_sub(from + 1)).unwrap_or(u8::MAX)
    };
    let mut program: Vec<SockFilter> = lines
        .iter()
        .enumerate()
        .map(|(index, line)| {
            let (yes, no) = (place(index, line.yes), place(index, line.no));
            SockFilter::new(line.code, yes, no, line.k)
        })
        .collect();
    program.push(SockFilter::new(RETURN, 0, 0, SNAP_BYTES));
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}
