//! Sizes as people write them: `64M`, `1G`, `4096`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl Size {
    /// So many MiB.
    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// The bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is not a size: write a number and K, M, G or T, like 64M");
        let upper = text.trim().to_ascii_uppercase();
        let upper = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
        let unit = UNITS.iter().find_map(|&(unit, shift)| Some((upper.strip_suffix(unit)?, shift)));
        let (digits, shift) = unit.unwrap_or((upper, 0));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u64 = digits.parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).filter(|&bytes| bytes != 0).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|&&(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= shift);
        match whole {
            Some(&(unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_with_and_without_units() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("1G", 1 << 30),
            ("1gib", 1 << 30),
            ("4096", 4096),
            ("2 K", 0),
            ("3T", 3 << 40),
        ] {
            assert_eq!(text.parse::<Size>().map_or(0, Size::bytes), bytes, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["", "M", "-1M", "1.5G", "64X", "0", "99999999999999999999", "18446744073709551615T"] {
            assert!(text.parse::<Size>().unwrap_err().contains("like 64M"), "{text}");
        }
    }

    #[test]
    fn sizes_print_in_the_largest_whole_unit() {
        for text in ["64M", "1G", "1536M", "4097", "3T", "12K"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }
}
