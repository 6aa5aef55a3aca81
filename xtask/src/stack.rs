//! How deep the stack of each kernel program gets, read from the object: the kernel tells it only in its log.
//!
//! Counted as the oldest kernel counts that we run on: before 6.8 each function of a chain of calls takes a multiple of
//! 32 bytes, and at least 32; newer ones round to 16. A program can so be refused there and accepted here.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind, SymbolSection};

/// Bytes that a program may use with all that it calls.
pub(crate) const LIMIT: u32 = 512;
/// What the verifier of Linux 6.1 rounds each function's frame up to.
pub(crate) const ROUNDING: u32 = 32;
/// Bytes of one instruction.
const INSN: u64 = 8;
const CALL: u8 = 0x85;
const PSEUDO_CALL: u8 = 1;
const LOAD_64: u8 = 0x18;
const ADD_IMMEDIATE: u8 = 0x07;
const MOVE_REGISTER: u8 = 0xbf;
const FRAME_POINTER: u8 = 10;

type Place = (usize, u64);

struct Function {
    name: String,
    frame: u32,
    callees: BTreeSet<Place>,
}

/// The chain of calls that needs the most stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deepest {
    /// Bytes, each frame rounded up.
    pub(crate) bytes: u32,
    /// Functions from the program inwards, each with the bytes of its own frame.
    pub(crate) chain: Vec<(String, u32)>,
}

impl std::fmt::Display for Deepest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let chain: Vec<_> = self.chain.iter().map(|(name, frame)| format!("{name} {frame}")).collect();
        write!(f, "{} bytes of stack: {}", self.bytes, chain.join(", "))
    }
}

/// Deepest stack for each function symbol, callees included.
///
/// # Errors
/// When the object can't be parsed, or functions call each other in a circle.
pub(crate) fn depths(bytes: &[u8]) -> Result<BTreeMap<String, Deepest>> {
    let file = object::File::parse(bytes)?;
    let mut functions = BTreeMap::new();
    let mut names = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let SymbolSection::Section(index) = symbol.section() else { continue };
        let section = file.section_by_index(index)?;
        let code = section.data()?;
        let (from, to) = (symbol.address() as usize, (symbol.address() + symbol.size()) as usize);
        let body = code.get(from..to).context("a function outside of its section")?;
        let mut targets = BTreeMap::new();
        for (at, relocation) in section.relocations() {
            if let RelocationTarget::Symbol(target) = relocation.target() {
                let target = file.symbol_by_index(target)?;
                if let SymbolSection::Section(home) = target.section() {
                    targets.insert(at, (home.0, target.address(), target.kind() == SymbolKind::Section));
                }
            }
        }
        let place = (index.0, symbol.address());
        let scanned = scan(symbol.name()?, body, place, &targets);
        functions.insert(place, scanned);
        names.insert(symbol.name()?.to_owned(), place);
    }
    names.into_iter().map(|(name, place)| Ok((name, depth(&functions, place, 0)?))).collect()
}

/// Frame and callees of one function. `targets`: by offset in the section, (section, address, is a section symbol).
fn scan(name: &str, body: &[u8], place: Place, targets: &BTreeMap<u64, (usize, u64, bool)>) -> Function {
    let mut function = Function { name: name.to_owned(), frame: 0, callees: BTreeSet::new() };
    let mut copies = BTreeSet::new();
    let mut skip = false;
    for (number, insn) in body.chunks_exact(INSN as usize).enumerate() {
        if std::mem::take(&mut skip) {
            continue;
        }
        let (code, destination, source) = (insn[0], insn[1] & 15, insn[1] >> 4);
        let offset = i16::from_le_bytes([insn[2], insn[3]]);
        let immediate = i32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]);
        skip = code == LOAD_64;
        let at = place.1 + number as u64 * INSN;
        let mut reach = |bytes: i32| function.frame = function.frame.max(bytes.unsigned_abs());
        match code & 7 {
            1 if source == FRAME_POINTER && offset < 0 => reach(offset.into()),
            2 | 3 if destination == FRAME_POINTER && offset < 0 => reach(offset.into()),
            _ => {}
        }
        if code == MOVE_REGISTER {
            if source == FRAME_POINTER {
                copies.insert(destination)
            } else {
                copies.remove(&destination)
            };
        } else if code == ADD_IMMEDIATE && copies.remove(&destination) && immediate < 0 {
            reach(immediate);
        }
        if code == CALL && source == PSEUDO_CALL {
            let next = (at + INSN).wrapping_add_signed(i64::from(immediate) * INSN as i64);
            let callee = match targets.get(&at) {
                Some((home, address, true)) => {
                    (*home, address.wrapping_add_signed(i64::from(immediate + 1) * INSN as i64))
                }
                Some((home, address, false)) => (*home, *address),
                None => (place.0, next),
            };
            function.callees.insert(callee);
        }
    }
    function
}

fn depth(functions: &BTreeMap<Place, Function>, place: Place, level: u32) -> Result<Deepest> {
    if level > 16 {
        bail!("calls nest deeper than 16 functions");
    }
    let function = functions.get(&place).with_context(|| format!("a call to no function: {place:?}"))?;
    let mut deepest = Deepest::default();
    for callee in &function.callees {
        let below = depth(functions, *callee, level + 1)?;
        if below.bytes > deepest.bytes {
            deepest = below;
        }
    }
    deepest.bytes += function.frame.max(1).next_multiple_of(ROUNDING);
    deepest.chain.insert(0, (function.name.clone(), function.frame));
    Ok(deepest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_takes_a_multiple_of_32_bytes() {
        let function = |name: &str, frame, callees: &[Place]| Function {
            name: name.into(),
            frame,
            callees: callees.iter().copied().collect(),
        };
        let functions = BTreeMap::from([
            ((0, 0), function("entry", 0, &[(0, 8), (0, 16)])),
            ((0, 8), function("shallow", 64, &[])),
            ((0, 16), function("deep", 33, &[(0, 24)])),
            ((0, 24), function("leaf", 8, &[])),
        ]);
        let deepest = depth(&functions, (0, 0), 0).unwrap();
        assert_eq!(deepest.bytes, 32 + 64 + 32);
        assert_eq!(deepest.to_string(), "128 bytes of stack: entry 0, deep 33, leaf 8");
    }
}
