//! The halves of a Unix stream.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::SocketAddr;
use super::stream::UnixStream;
use crate::io::{Interest, Ready};
use crate::net::stream_halves;

stream_halves!(UnixStream, SocketAddr);
