//! What an object file of kernel programs says about itself.

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol};

const BTF_MAGIC: u16 = 0xeb9f;
const KIND_FUNC: u32 = 12;

/// Names of functions of Rust's panic machinery that the object still holds; empty is right.
///
/// # Errors
/// When the object is no ELF file or has no BTF: then nothing can be said.
pub(crate) fn panic_symbols(bytes: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(bytes)?;
    let btf = file.section_by_name(".BTF").context("the object has no BTF")?;
    let mut names = functions(btf.data()?)?;
    ensure!(!names.is_empty(), "the object's BTF names no function");
    names.extend(file.symbols().filter_map(|symbol| symbol.name().ok().map(str::to_owned)));
    names.retain(|name| name.contains("panic"));
    names.sort();
    names.dedup();
    Ok(names)
}

/// Names of all functions in a BTF section.
fn functions(btf: &[u8]) -> Result<Vec<String>> {
    let word = |at: usize| -> Result<u32> {
        let bytes = btf.get(at..at + 4).context("BTF ends early")?;
        Ok(u32::from_le_bytes(bytes.try_into()?))
    };
    ensure!(word(0)? & 0xffff == u32::from(BTF_MAGIC), "not BTF");
    let header = word(4)? as usize;
    let (types, strings) = (header + word(8)? as usize, header + word(16)? as usize);
    let end = types + word(12)? as usize;
    let mut names = Vec::new();
    let mut at = types;
    while at < end {
        let (name, info) = (word(at)? as usize, word(at + 4)?);
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if kind == KIND_FUNC {
            let text = btf.get(strings + name..).context("a name outside of the strings")?;
            let length = text.iter().position(|byte| *byte == 0).context("a name without an end")?;
            names.push(String::from_utf8_lossy(&text[..length]).into_owned());
        }
        // sizes as in the kernel's Documentation/bpf/btf.rst
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * members,
                6 | 13 => 8 * members,
                _ => 0,
            };
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::functions;

    /// BTF with the given (kind, extra bytes, name) types.
    fn btf(types: &[(u32, usize, &str)]) -> Vec<u8> {
        let (mut body, mut strings) = (Vec::new(), vec![0u8]);
        for (kind, extra, name) in types {
            body.extend((strings.len() as u32).to_le_bytes());
            body.extend((kind << 24).to_le_bytes());
            body.extend(0u32.to_le_bytes());
            body.resize(body.len() + extra, 0);
            strings.extend(name.bytes().chain([0]));
        }
        let mut bytes = 0x0001_eb9fu32.to_le_bytes().to_vec();
        for word in [24, 0, body.len(), body.len(), strings.len()] {
            bytes.extend((word as u32).to_le_bytes());
        }
        [bytes, body, strings].concat()
    }

    #[test]
    fn functions_are_found_behind_types_of_other_sizes() {
        let bytes =
            btf(&[(1, 4, "u32"), (3, 12, ""), (12, 0, "core::panicking::panic"), (12, 0, "lb_tc_in")]);
        assert_eq!(functions(&bytes).unwrap(), ["core::panicking::panic", "lb_tc_in"]);
    }

    #[test]
    fn a_cut_section_is_an_error() {
        let bytes = btf(&[(1, 4, "u32"), (12, 0, "lb_tc_in")]);
        assert!(functions(&bytes[..30]).is_err());
    }
}
