//! Another layout of the flow tables, which exists to test upgrades: everything has moved by one word. The feature
//! `abi-next` puts it in the place of the real one; the converters are compiled and tested always.

use core::ops::{Deref, DerefMut};

use super::ct::CtValue as Layout1;
use crate::family::{Family, V4, V6};

/// Value of `LB_CT4/6` and `LB_EM4/6` in layout 2.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CtValue<F: Family> {
    /// [`CONVERTED`] for an entry that was made by a program of layout 1, else 0.
    pub epoch: u64,
    /// What layout 1 held.
    pub flow: Layout1<F>,
}

/// IPv4 value.
pub type CtValue4 = CtValue<V4>;
/// IPv6 value.
pub type CtValue6 = CtValue<V6>;

const _: () = assert!(size_of::<CtValue4>() == 72 && size_of::<CtValue6>() == 112);

/// [`CtValue::epoch`] of an entry that came from layout 1.
pub const CONVERTED: u64 = 1;

impl<F: Family> Deref for CtValue<F> {
    type Target = Layout1<F>;

    #[inline(always)]
    fn deref(&self) -> &Layout1<F> {
        &self.flow
    }
}

impl<F: Family> DerefMut for CtValue<F> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Layout1<F> {
        &mut self.flow
    }
}

/// An IPv4 flow entry of layout 1 in layout 2.
#[cfg(any(feature = "std", test))]
#[must_use]
pub fn flow4(key: &[u8], value: &[u8]) -> Option<(std::vec::Vec<u8>, std::vec::Vec<u8>)> {
    flow::<V4>(key, value)
}

/// An IPv6 flow entry of layout 1 in layout 2.
#[cfg(any(feature = "std", test))]
#[must_use]
pub fn flow6(key: &[u8], value: &[u8]) -> Option<(std::vec::Vec<u8>, std::vec::Vec<u8>)> {
    flow::<V6>(key, value)
}

#[cfg(any(feature = "std", test))]
fn flow<F: Family>(key: &[u8], value: &[u8]) -> Option<(std::vec::Vec<u8>, std::vec::Vec<u8>)> {
    let fits = key.len() == size_of::<super::CtKey<F>>() && value.len() == size_of::<Layout1<F>>();
    fits.then(|| (key.to_vec(), [&CONVERTED.to_ne_bytes(), value].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_of_layout_1_has_its_fields_where_layout_2_looks() {
        for (convert, key, old, new) in [
            (flow4 as crate::abi::layout::Converter, 16, size_of::<Layout1<V4>>(), size_of::<CtValue4>()),
            (flow6, 40, size_of::<Layout1<V6>>(), size_of::<CtValue6>()),
        ] {
            let (key, value) = (std::vec![7; key], (0..old as u8).collect::<std::vec::Vec<_>>());
            let (new_key, new_value) = convert(&key, &value).expect("an entry of layout 1");
            assert_eq!((new_key, new_value.len()), (key.clone(), new));
            assert_eq!(new_value[..8], CONVERTED.to_ne_bytes());
            assert_eq!(new_value[core::mem::offset_of!(CtValue4, flow)..], value);
            assert!(convert(&key, &value[1..]).is_none(), "an entry that is cut off");
            assert!(convert(&key[1..], &value).is_none(), "a key that is cut off");
        }
    }
}
