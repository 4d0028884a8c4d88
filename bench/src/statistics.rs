//! Medians, extremes, ratios of pairs.

use serde::Serialize;

/// What a series of measurements says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one finite number; anything else is a mistake of the caller's and gives NaN.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
            return Self { median: f64::NAN, min: f64::NAN, max: f64::NAN };
        };
        let (low, high) = ((sorted.len() - 1) / 2, sorted.len() / 2);
        Self { median: (sorted[low] + sorted[high]) / 2.0, min: *min, max: *max }
    }

    /// Of the quotients of what was measured in the same round.
    pub(crate) fn of_ratios(
        above: impl IntoIterator<Item = f64>,
        below: impl IntoIterator<Item = f64>,
    ) -> Self {
        Self::of(above.into_iter().zip(below).map(|(above, below)| above / below))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert!(Spread::of([]).median.is_nan());
    }

    #[test]
    fn ratios_are_of_rounds_not_of_medians() {
        // A machine that gets slower by half each round hits both alike.
        let ratios = Spread::of_ratios([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]);
        assert_eq!(ratios, Spread { median: 0.5, min: 0.5, max: 0.5 });
    }
}
