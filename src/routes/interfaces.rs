//! This machine's addresses, and when they change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use smol::{Async, Timer};

use super::Kind;
use crate::order;

/// Changes come in heaps: they are told once it has been quiet for this long.
const SETTLE: Duration = Duration::from_millis(300);
/// Where the kernel does not tell of changes, they are looked for this often.
const LOOK_EVERY: Duration = Duration::from_secs(20);

/// One address of one interface that is up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// The kernel's number of the interface.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Bits that its network shares.
    pub prefix: u8,
    /// IPv4: the address that everybody in the network hears.
    pub broadcast: Option<Ipv4Addr>,
    /// Running, and neither loopback nor a point-to-point link: a network that may have neighbours.
    pub has_neighbours: bool,
}

impl Interface {
    /// The address with `port`; link-local IPv6 addresses mean something on their interface only.
    pub fn socket_address(&self, port: u16) -> SocketAddr {
        let mut address = SocketAddr::new(self.ip, port);
        if let SocketAddr::V6(v6) = &mut address {
            if is_link_local(*v6.ip()) {
                v6.set_scope_id(self.index);
            }
        }
        address
    }
}

fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

/// All addresses of interfaces that are up, in a fixed order; empty where the kernel does not say.
pub fn list() -> Vec<Interface> {
    let mut found = Vec::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs fills a list that is ours until freeifaddrs. Its entries, their names and addresses are valid
    // until then.
    unsafe {
        if libc::getifaddrs(&mut list) == 0 {
            let mut at = list;
            while !at.is_null() {
                found.extend(one(&*at));
                at = (*at).ifa_next;
            }
            libc::freeifaddrs(list);
        }
    }
    order::sort(&mut found);
    found.dedup();
    found
}

/// # Safety
/// The entry's pointers are null or valid, as getifaddrs leaves them.
unsafe fn one(entry: &libc::ifaddrs) -> Option<Interface> {
    let has = |flag: libc::c_int| entry.ifa_flags & flag as u32 != 0;
    if !has(libc::IFF_UP) {
        return None;
    }
    // SAFETY: see above. The name ends with a zero byte.
    let (ip, mask, broadcast, index) = unsafe {
        let broadcast = if has(libc::IFF_BROADCAST) { ip_of(entry.ifa_ifu) } else { None };
        let index = if entry.ifa_name.is_null() { 0 } else { libc::if_nametoindex(entry.ifa_name) };
        (ip_of(entry.ifa_addr)?, ip_of(entry.ifa_netmask), broadcast, index)
    };
    Some(Interface {
        index,
        ip,
        prefix: mask.map_or(0, prefix_of),
        broadcast: match broadcast {
            Some(IpAddr::V4(ip)) => Some(ip),
            _ => None,
        },
        has_neighbours: has(libc::IFF_RUNNING) && !has(libc::IFF_LOOPBACK) && !has(libc::IFF_POINTOPOINT),
    })
}

/// # Safety
/// `address` is null or points to a socket address that is as long as its family says.
unsafe fn ip_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: see above.
    unsafe {
        match i32::from((*address).sa_family) {
            libc::AF_INET => {
                let address = address.cast::<libc::sockaddr_in>().read_unaligned();
                Some(IpAddr::from(address.sin_addr.s_addr.to_ne_bytes()))
            }
            libc::AF_INET6 => {
                let address = address.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(IpAddr::from(address.sin6_addr.s6_addr))
            }
            _ => None,
        }
    }
}

fn prefix_of(mask: IpAddr) -> u8 {
    let bits = match mask {
        IpAddr::V4(mask) => u32::from(mask).count_ones(),
        IpAddr::V6(mask) => u128::from(mask).count_ones(),
    };
    bits as u8
}

/// Of `all`, the addresses under which neighbours can reach a cell that listens on `listen`: of IPv6 at most two of an
/// interface, and a link-local one only where there is nothing else.
pub fn reachable_by_neighbours(all: &[Interface], listen: IpAddr) -> Vec<Interface> {
    let is_heard = |ip: IpAddr| match listen {
        IpAddr::V4(any) if any.is_unspecified() => ip.is_ipv4(),
        IpAddr::V6(any) if any.is_unspecified() => true,
        one => one == ip,
    };
    let is_near = |ip: IpAddr| !matches!(Kind::of_ip(ip, &[]), Kind::Tailscale | Kind::Yggdrasil);
    let mut chosen: Vec<Interface> = Vec::new();
    let rank = |ip: IpAddr| match ip {
        IpAddr::V4(_) => 0,
        IpAddr::V6(ip) if is_link_local(ip) => 2,
        IpAddr::V6(_) => 1,
    };
    let mut candidates: Vec<&Interface> =
        all.iter().filter(|one| one.has_neighbours && is_heard(one.ip) && is_near(one.ip)).collect();
    order::sort_by_key(&mut candidates, |one| (one.index, rank(one.ip), one.ip));
    for one in candidates {
        let same = |other: &&Interface| other.index == one.index;
        let is_wanted = match rank(one.ip) {
            0 => true,
            1 => chosen.iter().filter(same).filter(|other| other.ip.is_ipv6()).count() < 2,
            _ => !chosen.iter().any(|other| other.index == one.index),
        };
        if is_wanted {
            chosen.push(one.clone());
        }
    }
    chosen
}

/// Hears from the kernel (rtnetlink) when links, addresses or IPv4 routes change; sleeps while nothing does.
pub struct Watch {
    /// `None`: the kernel does not tell.
    socket: Option<Async<OwnedFd>>,
}

impl Watch {
    /// Hears of changes from now on.
    pub fn open() -> Self {
        let socket = open_netlink().and_then(Async::new);
        if let Err(why) = &socket {
            log::info!("the kernel does not tell of changed addresses ({why}); they are looked for");
        }
        Self { socket: socket.ok() }
    }

    /// Waits until something has changed, or may have. Whoever stops waiting should look himself.
    pub async fn changed(&self) {
        let Some(socket) = &self.socket else {
            Timer::after(LOOK_EVERY).await;
            return;
        };
        if socket.readable().await.is_err() {
            Timer::after(LOOK_EVERY).await;
        }
        Timer::after(SETTLE).await;
        let mut sink = [0; 4096];
        // What was lost for want of room (ENOBUFS) was news, too.
        loop {
            match rustix::net::recv(socket, &mut sink[..], RecvFlags::DONTWAIT) {
                Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::NOBUFS) => {}
                Err(_) => return,
            }
        }
    }
}

fn open_netlink() -> std::io::Result<OwnedFd> {
    let groups =
        libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR | libc::RTMGRP_IPV4_ROUTE;
    let fd = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        // Protocol 0: NETLINK_ROUTE.
        None,
    )?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups as u32))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(index: u32, ip: &str) -> Interface {
        Interface { index, ip: ip.parse().unwrap(), prefix: 24, broadcast: None, has_neighbours: true }
    }

    #[test]
    fn loopback_is_listed_and_has_no_neighbours() {
        let all = list();
        let loopback = all.iter().find(|one| one.ip.is_loopback()).expect("lo is up");
        assert!(!loopback.has_neighbours && loopback.index > 0);
        assert_eq!(loopback.prefix, if loopback.ip.is_ipv4() { 8 } else { 128 });
    }

    #[test]
    fn neighbours_are_sought_where_the_cell_listens_and_not_in_tunnels() {
        let tunnel = Interface { has_neighbours: false, ..one(9, "10.9.9.9") };
        let all = [
            one(2, "192.168.1.5"),
            one(2, "fe80::1"),
            one(2, "fd00::1"),
            one(2, "fd00::2"),
            one(2, "fd00::3"),
            one(3, "fe80::2"),
            one(4, "100.64.0.7"),
            one(5, "200::7"),
            tunnel,
        ];
        let chosen = |listen: &str| -> Vec<String> {
            let chosen = reachable_by_neighbours(&all, listen.parse().unwrap());
            chosen.iter().map(|one| one.socket_address(1).to_string()).collect()
        };
        assert_eq!(chosen("0.0.0.0"), ["192.168.1.5:1"]);
        assert_eq!(chosen("::"), ["192.168.1.5:1", "[fd00::1]:1", "[fd00::2]:1", "[fe80::2%3]:1"]);
        assert_eq!(chosen("fd00::3"), ["[fd00::3]:1"]);
        assert_eq!(chosen("127.0.0.1"), [""; 0]);
    }
}
