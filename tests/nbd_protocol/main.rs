//! The NBD server as a process, and clients that speak to it byte by byte: what it does
//! when they break the rules, when they die, and when it cannot start.

mod client;
mod endings;
mod malformed;
mod startup;
