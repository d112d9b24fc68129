//! The texts that settings are written in: times, sizes, addresses, names. Each refusal says what such a text looks like.

use std::{net::SocketAddr, time::Duration};

const TIMES: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60 * 1000), ("h", 3600 * 1000), ("d", 24 * 3600 * 1000)];
const SIZES: [(&str, u64); 5] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// A time such as `80ms`, `10s`, `5m`, `24h` or `7d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    scaled(text, &TIMES)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("'{}' is not a time such as 80ms, 10s, 5m, 24h or 7d", text.escape_debug()))
}

/// A size such as `512B`, `64KiB`, `256MiB`, `4GiB` or `1TiB`.
pub fn size(text: &str) -> Result<u64, String> {
    scaled(text, &SIZES)
        .ok_or_else(|| format!("'{}' is not a size such as 64KiB, 256MiB, 4GiB or 1TiB", text.escape_debug()))
}

/// A whole number and a unit, in the smallest of the units; a bare `0` needs none.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(scale)
}

pub(super) fn show_size(bytes: u64) -> String {
    let fits = SIZES.iter().rev().find(|(_, scale)| bytes >= *scale && bytes.is_multiple_of(*scale));
    let (unit, scale) = fits.unwrap_or(&SIZES[0]);
    format!("{}{unit}", bytes / scale)
}

pub(super) fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = TIMES.iter().rev().find(|(_, scale)| millis >= *scale && millis.is_multiple_of(*scale));
    let (unit, scale) = fits.unwrap_or(&TIMES[0]);
    format!("{}{unit}", millis / scale)
}

/// Where to listen: an IP address and a port.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("'{}' is not an address such as 127.0.0.1:7700 or [::1]:7700", text.escape_debug()))
}

/// Whom to ask: a host name or an IP address, and a port.
pub fn host_and_port(text: &str) -> bool {
    let Ok(authority) = text.parse::<http::uri::Authority>() else { return false };
    !authority.host().is_empty() && authority.port_u16().is_some_and(|port| port > 0) && !text.contains('@')
}

/// A node of a database: a host name or an IP address, with or without a port.
pub(super) fn host(text: &str) -> Result<String, String> {
    let authority = text.parse::<http::uri::Authority>().ok().filter(|_| !text.contains('@'));
    let plain = text.parse::<std::net::IpAddr>().is_ok();
    let whole = authority.is_some_and(|authority| {
        !authority.host().is_empty()
            && (authority.as_str() == authority.host() || authority.port_u16().is_some_and(|port| port > 0))
    });
    if whole || plain {
        return Ok(text.to_owned());
    }
    Err(format!("'{}' is not a host such as 10.0.0.1 or db1.example:9042", text.escape_debug()))
}

/// A name that reads well in a log, a metric's label and a command line.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=64).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(format!("a name is 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.', not '{}'", name.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_need_a_known_unit() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(duration(text).ok().map(|d| d.as_millis() as u64), expected, "{text}");
        };
        check("80ms", Some(80));
        check("10s", Some(10_000));
        check("24h", Some(86_400_000));
        check("0", Some(0));
        for bad in ["", "10", "s", "1.5s", "10 s", "-1s", "10S", "99999999999999999999s", "18446744073709551615d"] {
            check(bad, None);
        }
        let check = |text: &str, expected: Option<u64>| assert_eq!(size(text).ok(), expected, "{text}");
        check("512B", Some(512));
        check("256MiB", Some(256 << 20));
        for bad in ["", "256", "256MB", "256mib", "1e3B", "99999999999TiB"] {
            check(bad, None);
        }
    }

    #[test]
    fn an_upstream_elsewhere_has_a_host_and_a_port() {
        for good in ["centre.example:7711", "10.0.0.1:80", "[::1]:7711", "localhost:1"] {
            assert!(host_and_port(good), "{good}");
        }
        for bad in ["", "centre.example", ":80", "10.0.0.1:0", "10.0.0.1:99999", "http://a:1", "a:b@c:1", "a b:1"] {
            assert!(!host_and_port(bad), "{bad}");
        }
    }

    #[test]
    fn a_node_of_a_database_is_a_host_with_or_without_a_port() {
        for good in ["db1", "db1.example:9042", "10.0.0.1", "10.0.0.1:9042", "[::1]", "[::1]:9042", "fd00::1"] {
            assert_eq!(host(good), Ok(good.to_owned()));
        }
        for bad in ["", ":9042", "db1:", "db1:0", "db1:99999", "a@b", "a b", "http://db1"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_reads_back(number: u16, unit in 0usize..5) {
            let bytes = u64::from(number) * SIZES[unit].1;
            proptest::prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
            let time = Duration::from_millis(u64::from(number) * TIMES[unit].1);
            proptest::prop_assert_eq!(duration(&show_duration(time)), Ok(time));
        }

        #[test]
        fn no_text_makes_a_unit_panic(text: String) {
            let _ = (duration(&text), size(&text), address(&text), host_and_port(&text), host(&text), check_name(&text));
        }
    }
}
