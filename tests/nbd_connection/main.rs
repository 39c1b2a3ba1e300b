//! One NBD connection on an in-memory pipe: no sockets, no threads, no time.
//!
//! The rooms of `examples/nbd_target` that need neither a reactor nor a file are
//! compiled in here and driven by a single-threaded executor.

#[path = "../../examples/nbd_target/buffers.rs"]
mod buffers;
#[path = "../../examples/nbd_target/disk.rs"]
mod disk;
#[path = "../../examples/nbd_target/flight.rs"]
mod flight;
#[path = "../../examples/nbd_target/negotiate.rs"]
mod negotiate;
#[path = "../../examples/nbd_target/protocol.rs"]
mod protocol;
#[path = "../../examples/nbd_target/ram_disk.rs"]
mod ram_disk;
#[path = "../../examples/nbd_target/transmit.rs"]
mod transmit;

mod handshake;
mod harness;
mod memory;
mod refusals;
mod requests;
