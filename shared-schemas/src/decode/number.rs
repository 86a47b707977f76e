//! Numbers from their literal text, so that `1` and `1.0` and `1e0` stay apart and no digit is lost on the way.

use super::refusal::Reason;

/// An integer literal that fits. A point or an exponent makes it another type, whatever the value.
pub(super) fn int64(literal: &str) -> Result<i64, Reason> {
    if literal.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        return Err(Reason::WrongType);
    }
    literal.parse().map_err(|_| Reason::OutOfRange)
}

/// Any literal whose nearest double is finite.
pub(super) fn float64(literal: &str) -> Result<f64, Reason> {
    literal
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())
        .ok_or(Reason::OutOfRange)
}

/// The literal as a whole number of 10^-`scale`, exactly. Below 10^(`precision` - `scale`) it is in range; that is
/// asked first, so that the reason does not depend on how the number is written.
pub(super) fn decimal(literal: &str, precision: u8, scale: u8) -> Result<i128, Reason> {
    let literal = Literal::parse(literal);
    match literal.scaled(i64::from(scale), i64::from(precision)) {
        Scaled::Exact(value) => Ok(literal.signed(value)),
        Scaled::Cut(_) => Err(Reason::Inexact),
        Scaled::TooLarge => Err(Reason::OutOfRange),
    }
}

/// The literal in units of 10^-`scale`, digits beyond that cut; `None` if negative or beyond `i64`.
pub(super) fn cut(literal: &str, scale: u8) -> Option<i64> {
    let literal = Literal::parse(literal);
    let value = match literal.scaled(i64::from(scale), 19) {
        Scaled::Exact(0) => return Some(0),
        Scaled::Exact(value) | Scaled::Cut(value) => value,
        Scaled::TooLarge => return None,
    };
    i64::try_from(value).ok().filter(|_| !literal.negative)
}

/// A JSON number, taken apart.
struct Literal<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: i64,
}

/// A literal's absolute value in units of a power of ten.
enum Scaled {
    Exact(i128),
    /// Digits were lost.
    Cut(i128),
    /// More digits than asked for.
    TooLarge,
}

impl<'a> Literal<'a> {
    /// `text` is a JSON number: the scanner has said so.
    fn parse(text: &'a str) -> Self {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        Literal {
            negative,
            whole: whole.as_bytes(),
            fraction: fraction.as_bytes(),
            exponent: clamped(exponent),
        }
    }

    fn signed(&self, value: i128) -> i128 {
        if self.negative { -value } else { value }
    }

    fn digit(&self, at: usize) -> u8 {
        let digit = self.whole.get(at).or_else(|| self.fraction.get(at - self.whole.len()));
        digit.map_or(0, |byte| byte - b'0')
    }

    /// The value times 10^`scale`, if it has at most `most` (at most 38) digits before the point.
    fn scaled(&self, scale: i64, most: i64) -> Scaled {
        let length = self.whole.len() + self.fraction.len();
        let Some(first) = (0..length).find(|&at| self.digit(at) != 0) else {
            return Scaled::Exact(0);
        };
        let last = (first..length).rfind(|&at| self.digit(at) != 0).unwrap_or(first);
        // Digits before the point once it has moved by the exponent and the scale.
        let kept = count(self.whole.len()) - count(first) + self.exponent + scale;
        if kept > most {
            return Scaled::TooLarge;
        }
        let kept = usize::try_from(kept).unwrap_or(0);
        let value = (first..first + kept).fold(0, |value: i128, at| value * 10 + i128::from(self.digit(at)));
        if first + kept > last {
            Scaled::Exact(value)
        } else {
            Scaled::Cut(value)
        }
    }
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// An exponent, held where sums with the length of any text cannot overflow.
fn clamped(exponent: &str) -> i64 {
    const FAR: i64 = 1 << 50;
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, exponent.strip_prefix('+').unwrap_or(exponent)),
    };
    let size = digits
        .bytes()
        .fold(0_i64, |size, byte| (size * 10 + i64::from(byte - b'0')).min(FAR));
    sign * size
}
