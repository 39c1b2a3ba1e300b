//! A table whose keys name one entry for ever: what was removed is never found again under its key,
//! also where the key is in the kernel's hands, or in a future that is asked once too often.

use slab::Slab;

/// Names an entry: its place, and which of the entries that were ever at that place it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    place: u32,
    generation: u32,
}

impl Key {
    /// As a number for the kernel; the greatest ones are never given.
    #[inline]
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.place)
    }

    #[inline]
    pub(crate) fn from_bits(bits: u64) -> Key {
        Key {
            place: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

pub(crate) struct Table<T> {
    entries: Slab<(u32, T)>,
    /// Of the next entry: a key would have to outlive four thousand million others to be mistaken.
    generation: u32,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table {
            entries: Slab::new(),
            generation: 0,
        }
    }
}

impl<T> Table<T> {
    /// The key that the next insertion gives.
    #[inline]
    pub(crate) fn next_key(&self) -> Key {
        Key {
            // `insert` has seen to it that it fits.
            place: self.entries.vacant_key() as u32,
            generation: self.generation,
        }
    }

    #[inline]
    pub(crate) fn insert(&mut self, value: T) -> Key {
        let key = self.next_key();
        let place = self.entries.insert((key.generation, value));
        assert!(place < u32::MAX as usize - 2, "too many entries at once");
        self.generation = self.generation.wrapping_add(1);
        key
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.entries.get_mut(key.place as usize) {
            Some((generation, value)) if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        self.get_mut(key)?;
        Some(self.entries.remove(key.place as usize).1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().map(|(place, (generation, value))| {
            let (place, generation) = (place as u32, *generation);
            (Key { place, generation }, value)
        })
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().map(|(_, (_, value))| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_nothing_else_once_its_entry_is_gone() {
        let mut table = Table::default();
        let first = table.insert('a');
        assert_eq!(table.remove(first), Some('a'));
        let promised = table.next_key();
        let second = table.insert('b');
        assert_eq!(promised, second);
        assert_eq!(first.place, second.place, "the place is taken again");
        assert!(table.get_mut(first).is_none() && table.remove(first).is_none());
        assert_eq!(table.get_mut(second), Some(&mut 'b'));
        assert_eq!(Key::from_bits(second.to_bits()), second);
        assert!(table.iter().eq([(second, &'b')]));
    }
}
