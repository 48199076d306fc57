//! The transport as a driver sees it, with a device that echoes.

mod hostile;
mod random;
mod registers;
mod running;
