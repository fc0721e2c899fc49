//! A connection that was accepted: plain TCP, or TLS over it.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use smol::Async;
use smol::io::{AsyncRead, AsyncWrite};

/// A connection that was accepted. Closing it for writing tells the other side that nothing more comes.
pub enum Accepted {
    /// As it came.
    Plain(Async<TcpStream>),
    /// Inside TLS.
    #[cfg(feature = "wss")]
    Tls(Box<futures_rustls::server::TlsStream<Async<TcpStream>>>),
}

impl Accepted {
    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream.get_ref(),
            #[cfg(feature = "wss")]
            Self::Tls(stream) => stream.get_ref().0.get_ref(),
        }
    }

    /// It runs over TLS.
    pub fn is_tls(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}

impl From<Async<TcpStream>> for Accepted {
    fn from(stream: Async<TcpStream>) -> Self {
        Self::Plain(stream)
    }
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(feature = "wss")]
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            #[cfg(feature = "wss")]
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "wss")]
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        #[cfg(feature = "wss")]
        if let Self::Tls(stream) = this {
            ready!(Pin::new(stream).poll_close(cx))?;
        }
        #[cfg(not(feature = "wss"))]
        ready!(Pin::new(&mut *this).poll_flush(cx))?;
        Poll::Ready(this.tcp().shutdown(Shutdown::Write))
    }
}
