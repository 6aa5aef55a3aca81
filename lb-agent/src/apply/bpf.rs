//! The tables as pinned BPF maps: batches where the kernel has them, single system calls where not.

use std::io;
use std::marker::PhantomData;
use std::path::Path;

use lb_common::abi::names;
use lb_common::abi::{
    Addr4, Addr6, Backend4, Backend6, Iface, LbConfig, NextHop, Peer, RangeKey4, RangeKey6, SvcKey4, SvcKey6,
    SvcValue,
};

use super::mapset::{Failure, MapSet, Table, for_each_table};
use super::raw::Raw;
use crate::desired::Prefix;
use crate::sys::bpf::{ARRAY, BATCH, RawMap, no_batches};

/// One map with typed keys and values.
#[derive(Debug)]
pub(crate) struct BpfTable<K, V> {
    map: RawMap,
    /// Cleared by the first answer that there are no batches for this type of map.
    batches: bool,
    types: PhantomData<(K, V)>,
}

impl<K: Raw, V: Raw> BpfTable<K, V> {
    /// Takes a map over.
    ///
    /// # Errors
    /// `InvalidData` if its keys or values have other sizes.
    fn new(map: RawMap) -> io::Result<Self> {
        let info = map.info();
        if info.key_size as usize != K::LEN || map.value_len() != V::LEN {
            let text = format!(
                "keys and values of {} and {} bytes, expected {} and {}",
                info.key_size,
                info.value_size,
                K::LEN,
                V::LEN
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(BpfTable { map, batches: true, types: PhantomData })
    }

    fn is_array(&self) -> bool {
        self.map.info().map_type == ARRAY
    }

    fn write_chunk(&mut self, entries: &[(K, V)], first: usize, failures: &mut Vec<Failure>) {
        let mut keys = Vec::with_capacity(entries.len() * K::LEN);
        let mut values = Vec::with_capacity(entries.len() * V::LEN);
        for (key, value) in entries {
            key.put(&mut keys);
            value.put(&mut values);
        }
        let mut at = 0;
        while self.batches && at < entries.len() {
            let count = (entries.len() - at) as u32;
            let (done, result) = self.map.update_batch(&keys[at * K::LEN..], &values[at * V::LEN..], count);
            at += done as usize;
            match result {
                Ok(()) => return,
                Err(error) if no_batches(&error) => self.batches = false,
                Err(error) => {
                    failures.push((first + at, error));
                    at += 1;
                }
            }
        }
        for (i, (key, value)) in entries.iter().enumerate().skip(at) {
            if let Err(error) = self.map.update(&key.bytes(), &value.bytes()) {
                failures.push((first + i, error));
            }
        }
    }
}

impl<K: Raw, V: Raw> Table<K, V> for BpfTable<K, V> {
    fn write(&mut self, entries: &[(K, V)]) -> Vec<Failure> {
        let mut failures = Vec::new();
        for (number, chunk) in entries.chunks(BATCH as usize).enumerate() {
            self.write_chunk(chunk, number * BATCH as usize, &mut failures);
        }
        failures
    }

    fn remove(&mut self, keys: &[K]) -> Vec<Failure> {
        if self.is_array() {
            let zero = V::get(&vec![0; V::LEN]);
            let entries: Vec<(K, V)> = keys.iter().map(|key| (*key, zero)).collect();
            return self.write(&entries);
        }
        let result = keys.iter().enumerate().map(|(i, key)| (i, self.map.delete(&key.bytes())));
        result.filter_map(|(i, result)| result.err().map(|error| (i, error))).collect()
    }

    fn read(&mut self) -> io::Result<Vec<(K, V)>> {
        let array = self.is_array();
        let mut entries = Vec::new();
        self.map.for_each(|key, value| {
            if !array || value.iter().any(|byte| *byte != 0) {
                entries.push((K::get(key), V::get(value)));
            }
        })?;
        Ok(entries)
    }
}

macro_rules! bpf_maps {
    ($($field:ident: $key:ty => $value:ty, $name:ident;)*) => {
        /// All tables that the agent writes, in the kernel.
        #[derive(Debug)]
        pub struct BpfMaps {
            config: RawMap,
            roles: RawMap,
            slots: BpfTable<u32, u32>,
            $($field: BpfTable<$key, $value>,)*
        }

        impl BpfMaps {
            /// Opens the maps pinned in `folder`.
            ///
            /// # Errors
            /// With the name of a map that is missing or of another shape.
            pub fn open(folder: &Path) -> io::Result<Self> {
                let named = |name: &str, error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
                let open = |name: &str| RawMap::open(&folder.join(name)).map_err(|error| named(name, error));
                Ok(BpfMaps {
                    config: open(names::LB_CONFIG)?,
                    roles: open(names::LB_ROLES)?,
                    slots: BpfTable::new(open(names::LB_SLOTS)?).map_err(|error| named(names::LB_SLOTS, error))?,
                    $($field: BpfTable::new(open(names::$name)?).map_err(|error| named(names::$name, error))?,)*
                })
            }
        }

        impl MapSet for BpfMaps {
            $(fn $field(&mut self) -> &mut dyn Table<$key, $value> {
                &mut self.$field
            })*

            fn slots(&mut self) -> &mut dyn Table<u32, u32> {
                &mut self.slots
            }

            fn read_config(&mut self) -> io::Result<LbConfig> {
                let mut value = vec![0; LbConfig::LEN];
                self.config.lookup(&0u32.bytes(), &mut value)?;
                Ok(LbConfig::get(&value))
            }

            fn write_config(&mut self, config: &LbConfig) -> io::Result<()> {
                self.config.update(&0u32.bytes(), &config.bytes())
            }

            fn read_roles(&mut self) -> io::Result<Vec<u8>> {
                let mut value = vec![0; self.roles.value_len()];
                self.roles.lookup(&0u32.bytes(), &mut value)?;
                Ok(value)
            }

            fn write_roles(&mut self, roles: &[u8]) -> io::Result<()> {
                self.roles.update(&0u32.bytes(), roles)
            }
        }
    };
}
for_each_table!(bpf_maps);
