//! The RAM disk under several threads, and what it gives back.

use futures::executor::block_on;

use crate::disk::{Disk, Zeroing};
use crate::ram_disk::RamDisk;

fn read(disk: &RamDisk, offset: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0xcc; length];
    disk.try_read(offset, &mut data).unwrap().unwrap();
    data
}

/// Two clients on two cores write different bytes of the same word.
#[test]
fn racing_writes_to_neighbouring_bytes_are_both_kept() {
    let disk = RamDisk::new(4096).unwrap();
    let start = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for at in [1, 4] {
            let (disk, start) = (&disk, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..100_000 {
                    disk.try_write(at, &[round as u8; 3]).unwrap().unwrap();
                    assert_eq!(read(disk, at, 3), [round as u8; 3]);
                }
            });
        }
    });
    let last = (99_999 % 256) as u8;
    assert_eq!(
        read(&disk, 0, 8),
        [0, last, last, last, last, last, last, 0]
    );
}

/// More than any machine has: only what is written takes memory.
#[test]
fn untouched_memory_is_not_allocated() {
    let size = 1 << 42;
    let disk = RamDisk::new(size).unwrap();
    for at in [0, 1 << 30, size - 4096] {
        disk.try_write(at, &[1; 4096]).unwrap().unwrap();
        assert_eq!(read(&disk, at, 4096), [1; 4096]);
        assert_eq!(read(&disk, at / 2, 1).len(), 1);
    }
}

#[test]
fn zeroing_and_trimming_touch_exactly_their_area() {
    const SIZE: usize = 1 << 20;
    for may_punch in [false, true] {
        for (start, end) in [
            (0, SIZE),
            (1, SIZE - 1),
            (4096, 12_288),
            (5000, 5001),
            (4095, 8193),
        ] {
            let disk = RamDisk::new(SIZE as u64).unwrap();
            for at in (0..SIZE).step_by(1 << 16) {
                disk.try_write(at as u64, &[0xee; 1 << 16])
                    .unwrap()
                    .unwrap();
            }
            let (offset, length) = (start as u64, (end - start) as u32);
            let mut expected = vec![0xee; SIZE];

            // A trim may round its area inwards, and zeroes what it discards.
            block_on(disk.trim(offset, length)).unwrap();
            let trimmed = block_on(disk.read(0, vec![0; SIZE], 0)).1;
            for (at, &byte) in trimmed.iter().enumerate() {
                assert!(
                    byte == 0xee || byte == 0 && (start..end).contains(&at),
                    "{at}"
                );
            }

            let how = Zeroing {
                may_punch,
                only_if_fast: false,
            };
            block_on(disk.write_zeroes(offset, length, how)).unwrap();
            expected[start..end].fill(0);
            assert!(block_on(disk.read(0, vec![0; SIZE], 0)).1 == expected);
        }
    }
}

#[test]
fn a_disk_need_not_be_a_multiple_of_anything() {
    for size in [1, 7, 8, 9, 4095, 4097, 65_537] {
        let disk = RamDisk::new(size).unwrap();
        assert_eq!(disk.size(), size);
        disk.try_write(size - 1, &[9]).unwrap().unwrap();
        assert_eq!(read(&disk, size - 1, 1), [9]);
        assert!(disk.try_write(size, &[]).unwrap().is_ok());
    }
}
