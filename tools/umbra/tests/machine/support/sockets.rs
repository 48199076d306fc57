//! Sockets of the host: frames of an interface and `AF_VSOCK`, which no library here has, and an echo for any.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};

use rustix::net::{SocketFlags, sockopt};

/// Frames of this type on an interface, in both directions.
pub fn frames(interface: &str, ethertype: u16) -> io::Result<File> {
    let index = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"))?;
    let index = index.trim().parse().map_err(io::Error::other)?;
    let socket = socket(
        libc::AF_PACKET,
        libc::SOCK_RAW,
        i32::from(ethertype.to_be()),
    )?;
    // SAFETY: all zeros is an address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = index;
    call(libc::bind, &socket, &address)?;
    Ok(socket)
}

/// Connects to a port of a guest.
pub fn connect(cid: u32, port: u32) -> io::Result<File> {
    let socket = socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)?;
    call(libc::connect, &socket, &vsock_address(cid, port))?;
    Ok(socket)
}

/// Listens at a port of the host.
pub fn listen(port: u32) -> io::Result<File> {
    let socket = socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)?;
    call(
        libc::bind,
        &socket,
        &vsock_address(libc::VMADDR_CID_ANY, port),
    )?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

/// Takes a connection.
pub fn accept(listener: &File) -> io::Result<File> {
    let connection = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
    with_patience(File::from(connection))
}

/// Sends back all that comes until the other side has ended; returns it.
pub fn echo(stream: &mut (impl Read + Write)) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), [0; 5000]);
    loop {
        let len = stream.read(&mut piece).unwrap();
        if len == 0 {
            return all;
        }
        stream.write_all(&piece[..len]).unwrap();
        all.extend_from_slice(&piece[..len]);
    }
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeros is an address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as u16;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<File> {
    // SAFETY: the arguments are numbers.
    let socket = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new.
    with_patience(unsafe { File::from_raw_fd(socket) })
}

/// Nothing takes so long, but on a software processor some things take seconds.
fn with_patience(socket: File) -> io::Result<File> {
    let patience = Some(std::time::Duration::from_secs(20));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, patience)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, patience)?;
    Ok(socket)
}

type Call = unsafe extern "C" fn(i32, *const libc::sockaddr, libc::socklen_t) -> i32;

fn call<T>(call: Call, socket: &File, address: &T) -> io::Result<()> {
    let (at, len) = (&raw const *address, size_of::<T>() as libc::socklen_t);
    // SAFETY: the address is as long as it says.
    match unsafe { call(socket.as_raw_fd(), at.cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
