//! Formatting of numbers: round ticks, and only significant digits.

/// Returns round numbers that divide `low..=high` into about `count` parts.
pub fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count.max(1) as f64;
    if !rough.is_finite() || rough <= 0.0 {
        return vec![low];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough * 0.7).unwrap_or(power);
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Formats a number with the digits that a step of `step` needs.
pub fn number(value: f64, step: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs();
    if magnitude >= 1e15 || magnitude < 1e-3 && step < 1e-3 {
        let text = format!("{value:.1e}");
        return text.replace(".0e", "e");
    }
    let (value, suffix, step) = match magnitude {
        m if m >= 1e9 => (value / 1e9, "G", step / 1e9),
        m if m >= 1e6 => (value / 1e6, "M", step / 1e6),
        m if m >= 1e4 => (value / 1e3, "k", step / 1e3),
        _ => (value, "", step),
    };
    let decimals = (0..6).find(|d| {
        let scaled = step * 10f64.powi(*d);
        (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1.0)
    });
    format!("{value:.*}{suffix}", decimals.unwrap_or(3) as usize).replace('-', "−")
}

/// Formats a value for a table: four significant digits.
pub fn significant(value: f64) -> String {
    if !value.is_finite() {
        return "NaN or infinite".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-4..9).contains(&magnitude) {
        return format!("{value:.3e}").replace('-', "−");
    }
    format!("{value:.*}", (3 - magnitude).clamp(0, 8) as usize).replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::tolerance;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(-0.3, 0.6, 4), [-0.2, 0.0, 0.2, 0.4, 0.6000000000000001]);
        assert_eq!(ticks(3.0, 3.0, 5), [3.0]);
        for (low, high) in [(0.0, 1.0), (-7.3, 2.9), (1e-5, 3e-5), (12345.0, 12399.0)] {
            let t = ticks(low, high, 5);
            // Ticks within 10⁻⁹ of a step of an end count; step and product are rounded.
            let (step, magnitude) = (t[1] - t[0], f64::max(-low, high));
            let slack = 1e-9 * step + tolerance::f64(3, magnitude);
            assert!(
                (3..=8).contains(&t.len()) && t[0] >= low - slack && t[t.len() - 1] <= high + slack,
                "{t:?}"
            );
        }
    }

    #[test]
    fn numbers_have_the_digits_of_their_step() {
        for (value, step, want) in [
            (0.0, 0.1, "0"),
            (0.25, 0.05, "0.25"),
            (-3.0, 1.0, "−3"),
            (20000.0, 5000.0, "20k"),
            (12500.0, 2500.0, "12.5k"),
            (2e-4, 1e-4, "2e-4"),
            (3e6, 1e6, "3M"),
        ] {
            assert_eq!(number(value, step), want);
        }
        assert_eq!(significant(0.123456), "0.1235");
        assert_eq!(significant(6.24), "6.240");
        assert_eq!(significant(-123456.0), "−123456");
        assert_eq!(significant(3e-7), "3.000e−7");
        assert_eq!(significant(f64::NAN), "NaN or infinite");
    }
}
