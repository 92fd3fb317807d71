//! Which hosts are this machine, so that nobody on a network can listen or answer in between.

use std::net::IpAddr;

/// Whether a URL's host, an IPv6 address in brackets or not, is this machine.
pub(crate) fn is_this_machine(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']);
    host == "localhost" || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}
