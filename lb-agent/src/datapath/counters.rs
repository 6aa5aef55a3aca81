//! `LB_COUNTERS`: one row per counter, one number per CPU.

use std::io;
use std::path::Path;

use crate::sys::bpf::RawMap;

/// Sums over all CPUs, by row.
pub(super) fn read(pin: &Path) -> io::Result<Vec<u64>> {
    let map = RawMap::open(pin)?;
    (0..map.info().max_entries).map(|row| one(&map, row)).collect()
}

/// The sum of one row.
///
/// # Errors
/// As the kernel says.
pub fn one(map: &RawMap, row: u32) -> io::Result<u64> {
    let mut value = vec![0; map.value_len()];
    map.lookup(&row.to_ne_bytes(), &mut value)?;
    Ok(sum(&value))
}

/// Each CPU's value is eight bytes, host order.
fn sum(value: &[u8]) -> u64 {
    value
        .chunks_exact(8)
        .map(|cpu| u64::from_ne_bytes(std::array::from_fn(|i| cpu[i])))
        .fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cpus_count() {
        let value: Vec<u8> = [1u64, 41, u64::MAX, 1].iter().flat_map(|n| n.to_ne_bytes()).collect();
        assert_eq!(sum(&value), 42);
    }
}
