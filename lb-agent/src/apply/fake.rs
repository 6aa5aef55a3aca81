//! The tables in memory, with faults, and with a look at the invariants after every single operation.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use lb_common::abi::{
    Addr4, Addr6, Backend4, Backend6, Iface, LbConfig, NextHop, Peer, ROLE_SIZE, RangeKey4, RangeKey6,
    SvcKey4, SvcKey6, SvcValue,
};

use super::mapset::{Failure, MapSet, Table, for_each_table};
use crate::desired::{Desired, Prefix};

/// What all tables share.
#[derive(Debug)]
pub(super) struct State {
    /// Contents; `roles` and `slots` unused.
    pub(super) tables: Desired,
    pub(super) slots: BTreeMap<u32, u32>,
    pub(super) roles: Vec<u8>,
    /// Operations so far.
    pub(super) ops: usize,
    /// Of a thousand operations so many fail.
    pub(super) faults: u64,
    seed: u64,
    /// Called after each operation.
    check: fn(&State),
}

impl State {
    /// One operation: a fault, or the change and a look at the invariants.
    fn op(&mut self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        // SplitMix64.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        self.ops += 1;
        if mixed % 1000 < self.faults {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        change(self);
        (self.check)(self);
        Ok(())
    }
}

/// One table in memory.
pub(super) struct FakeTable<K, V> {
    state: Rc<RefCell<State>>,
    pick: fn(&mut State) -> &mut BTreeMap<K, V>,
}

impl<K: Ord + Copy, V: Copy> Table<K, V> for FakeTable<K, V> {
    fn write(&mut self, entries: &[(K, V)]) -> Vec<Failure> {
        let mut state = self.state.borrow_mut();
        let one = |(i, (key, value)): (usize, &(K, V))| {
            state.op(|s| _ = (self.pick)(s).insert(*key, *value)).err().map(|error| (i, error))
        };
        entries.iter().enumerate().filter_map(one).collect()
    }

    fn remove(&mut self, keys: &[K]) -> Vec<Failure> {
        let mut state = self.state.borrow_mut();
        let one = |(i, key): (usize, &K)| {
            state.op(|s| _ = (self.pick)(s).remove(key)).err().map(|error| (i, error))
        };
        keys.iter().enumerate().filter_map(one).collect()
    }

    fn read(&mut self) -> io::Result<Vec<(K, V)>> {
        let mut state = self.state.borrow_mut();
        Ok((self.pick)(&mut state).iter().map(|(key, value)| (*key, *value)).collect())
    }
}

macro_rules! fake_maps {
    ($($field:ident: $key:ty => $value:ty, $name:ident;)*) => {
        /// All tables in memory.
        pub(super) struct FakeMaps {
            state: Rc<RefCell<State>>,
            slots: FakeTable<u32, u32>,
            $($field: FakeTable<$key, $value>,)*
        }

        impl FakeMaps {
            /// Empty tables, and the state to look at.
            pub(super) fn new(seed: u64, faults: u64, check: fn(&State)) -> (Self, Rc<RefCell<State>>) {
                let state = State {
                    tables: Desired::default(), slots: BTreeMap::new(), roles: vec![0; ROLE_SIZE], ops: 0, faults, seed, check,
                };
                let state = Rc::new(RefCell::new(state));
                let maps = FakeMaps {
                    state: state.clone(),
                    $($field: FakeTable { state: state.clone(), pick: |state| &mut state.tables.$field },)*
                    slots: FakeTable { state: state.clone(), pick: |state| &mut state.slots },
                };
                (maps, state)
            }
        }

        impl MapSet for FakeMaps {
            $(fn $field(&mut self) -> &mut dyn Table<$key, $value> {
                &mut self.$field
            })*

            fn slots(&mut self) -> &mut dyn Table<u32, u32> {
                &mut self.slots
            }

            fn read_config(&mut self) -> io::Result<LbConfig> {
                Ok(self.state.borrow().tables.config)
            }

            fn write_config(&mut self, config: &LbConfig) -> io::Result<()> {
                self.state.borrow_mut().op(|s| s.tables.config = *config)
            }

            fn read_roles(&mut self) -> io::Result<Vec<u8>> {
                Ok(self.state.borrow().roles.clone())
            }

            fn write_roles(&mut self, roles: &[u8]) -> io::Result<()> {
                self.state.borrow_mut().op(|s| s.roles = roles.to_vec())
            }
        }
    };
}
for_each_table!(fake_maps);
