//! Saturating byte counts: the products of a recipe's numbers may exceed 64 bits.

use std::ops::{Add, AddAssign, Div, Mul};

/// A count that saturates at its largest value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wide(u128);

impl Wide {
    /// The count in 64 bits, saturated.
    pub fn narrow(self) -> u64 {
        u64::try_from(self.0).unwrap_or(u64::MAX)
    }
}

/// Converts a number to a wide one.
pub(super) fn wide(number: impl TryInto<u128>) -> Wide {
    Wide(number.try_into().unwrap_or(u128::MAX))
}

impl<T: Into<Self>> Add<T> for Wide {
    type Output = Self;

    fn add(self, other: T) -> Self {
        Self(self.0.saturating_add(other.into().0))
    }
}

impl<T: Into<Self>> AddAssign<T> for Wide {
    fn add_assign(&mut self, other: T) {
        *self = *self + other;
    }
}

impl<T: Into<Self>> Mul<T> for Wide {
    type Output = Self;

    fn mul(self, other: T) -> Self {
        Self(self.0.saturating_mul(other.into().0))
    }
}

impl<T: Into<Self>> Div<T> for Wide {
    type Output = Self;

    fn div(self, other: T) -> Self {
        Self(self.0 / other.into().0.max(1))
    }
}

impl Mul<Wide> for u64 {
    type Output = Wide;

    fn mul(self, other: Wide) -> Wide {
        other * self
    }
}

impl From<u64> for Wide {
    fn from(number: u64) -> Self {
        Self(number.into())
    }
}

#[cfg(test)]
mod tests {
    use super::wide;

    #[test]
    fn what_is_too_large_stays_at_the_largest() {
        let large = wide(u64::MAX);
        assert_eq!((large + 1u64).narrow(), u64::MAX);
        assert_eq!((large * large * large * large / 2u64).narrow(), u64::MAX);
        assert_eq!((3 * wide(5usize) + 2u64).narrow(), 17);
    }
}
