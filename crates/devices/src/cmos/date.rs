//! Dates of the proleptic Gregorian calendar, UTC, from and to seconds since 1970.

const DAY_SECONDS: i64 = 86_400;

/// A date and a time of day. Fields may hold what a guest wrote, however absurd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    pub year: i64,
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

impl Date {
    /// Returns the date `seconds` after 1970 began.
    pub fn at(seconds: i64) -> Self {
        let (days, rest) = (
            seconds.div_euclid(DAY_SECONDS),
            seconds.rem_euclid(DAY_SECONDS),
        );
        // Counted from 1 March of year 0, so that the leap day ends a year; eras of 400 years.
        let shifted = days + 719_468;
        let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day_of_year + 2) / 153;
        let calendar_month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            year: era * 400 + year + i64::from(calendar_month <= 2),
            month: calendar_month as u8,
            day: (day_of_year - (153 * month + 2) / 5 + 1) as u8,
            hour: (rest / 3_600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// Returns the seconds since 1970 began. Fields out of range count on into the next one.
    pub fn seconds(&self) -> i64 {
        let time =
            i64::from(self.hour) * 3_600 + i64::from(self.minute) * 60 + i64::from(self.second);
        self.days() * DAY_SECONDS + time
    }

    fn days(&self) -> i64 {
        let months = self.year * 12 + i64::from(self.month) - 1 - 2;
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12));
        let (era, in_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        era * 146_097 + in_era * 365 + in_era / 4 - in_era / 100 + day_of_year - 719_468
    }

    /// Returns the day of the week, 1 for Sunday.
    pub fn weekday(&self) -> u8 {
        // 1970 began on a Thursday.
        ((self.days() + 4).rem_euclid(7) + 1) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_a_thousand_years_comes_back() {
        let mut last = Date::at(-400 * 366 * DAY_SECONDS);
        for day in -400 * 366 + 1..600 * 366 {
            let date = Date::at(day * DAY_SECONDS + 12_345);
            assert_eq!(date.seconds(), day * DAY_SECONDS + 12_345);
            assert_eq!(date.weekday(), last.weekday() % 7 + 1);
            last = date;
        }
    }

    #[test]
    fn known_days_are_right() {
        let date = |seconds| {
            let date = Date::at(seconds);
            (date.year, date.month, date.day, date.weekday())
        };
        assert_eq!(date(0), (1970, 1, 1, 5));
        assert_eq!(date(951_782_400), (2000, 2, 29, 3));
        assert_eq!(date(4_107_542_400), (2100, 3, 1, 2));
    }
}
