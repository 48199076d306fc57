//! What the programs are given: the same bytes whenever and wherever they are made.

use std::fmt::Write;

/// Words of the text's language.
const WORDS: usize = 1 << 14;
/// Characters of a line of text, about.
const LINE: usize = 72;
const SYLLABLES: [&str; 24] = [
    "an", "be", "cor", "da", "er", "fi", "gra", "hol", "in", "ka", "le", "mon", "ne", "or", "pre",
    "qui", "ra", "sto", "ti", "un", "ver", "wi", "ya", "zo",
];

/// Numbers that look random (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

/// Makes `len` bytes of text: words as often as in a language, the nth about 1/n as often as the first, in
/// sentences, in lines. It compresses about as well as English.
pub fn text(len: usize) -> Vec<u8> {
    let mut numbers = Numbers(1);
    let words = words(&mut numbers);
    let mut text = Vec::with_capacity(len + LINE);
    let (mut line, mut sentence) = (0, 0);
    while text.len() < len {
        let word = &words[rank(&mut numbers)];
        let begin = text.len();
        text.extend_from_slice(word.as_bytes());
        if sentence == 0 {
            text[begin].make_ascii_uppercase();
            sentence = 4 + numbers.below(20);
        }
        sentence -= 1;
        if sentence == 0 {
            text.push(b'.');
        }
        line += text.len() - begin + 1;
        if line > LINE {
            text.push(b'\n');
            line = 0;
        } else {
            text.push(b' ');
        }
    }
    text.truncate(len);
    text
}

fn words(numbers: &mut Numbers) -> Vec<String> {
    let word = |rank: usize| {
        // Words that are used often are short.
        let syllables = 1 + rank.ilog2() as usize / 5 + numbers.below(2);
        (0..syllables)
            .map(|_| numbers.one_of(&SYLLABLES))
            .collect::<String>()
    };
    (1..=WORDS).map(word).collect()
}

/// A rank: each power of two as often as the next, so a word of the nth rank about 1/n as often as the first.
fn rank(numbers: &mut Numbers) -> usize {
    let power = numbers.below(WORDS.ilog2() as usize);
    (1 << power) - 1 + numbers.below(1 << power)
}

/// Makes a C file of at least so many lines: functions of five kinds, each with statements, constants and calls of
/// its own.
pub fn source(lines: usize) -> String {
    let mut numbers = Numbers(2);
    let mut source = String::from(
        "struct node { struct node *next; unsigned key; double weight; char name[16]; };\n\n",
    );
    let mut functions = Functions::default();
    while source.lines().count() < lines {
        // Counting is slow, so several at a time.
        for _ in 0..20 {
            functions.add(&mut source, &mut numbers);
        }
    }
    source
}

/// How many functions of each kind there are.
#[derive(Default)]
struct Functions {
    mixers: usize,
    all: usize,
}

impl Functions {
    fn add(&mut self, source: &mut String, numbers: &mut Numbers) {
        let n = self.all;
        self.all += 1;
        let text = match n % 5 {
            0 => {
                self.mixers += 1;
                mixer(numbers, self.mixers)
            }
            1 => automaton(numbers, n),
            2 => lists(numbers, n),
            3 => matrix(numbers, n),
            _ => caller(numbers, n, self.mixers),
        };
        source.push_str(&text);
        source.push('\n');
    }
}

/// Arithmetic on words, in a loop.
fn mixer(numbers: &mut Numbers, n: usize) -> String {
    let mut text = format!(
        "unsigned mix_{n}(const unsigned *from, int count)\n{{\n    unsigned a = {}u, b = {}u, c = 0;\n\n    \
         for (int i = 0; i < count; i++) {{\n",
        numbers.next() as u32,
        numbers.next() as u32
    );
    for _ in 0..4 + numbers.below(12) {
        let (to, left, right) = (
            numbers.one_of(&["a", "b", "c"]),
            numbers.one_of(&["a", "b", "c", "from[i]"]),
            numbers.one_of(&["a", "b", "from[i]", "(unsigned)i"]),
        );
        let operator = numbers.one_of(&["+", "-", "*", "^", "|", "&"]);
        let shift = 1 + numbers.below(30);
        let by = numbers.one_of(&["+=", "^=", "-="]);
        let shifted = numbers.one_of(&["<<", ">>"]);
        line(
            &mut text,
            2,
            format_args!("{to} {by} ({left} {operator} {right}) {shifted} {shift};"),
        );
    }
    text.push_str("    }\n    return a ^ b ^ c;\n}\n");
    text
}

/// A switch over characters and states.
fn automaton(numbers: &mut Numbers, n: usize) -> String {
    let states = 4 + numbers.below(8);
    let mut text = format!(
        "int accepts_{n}(const char *s)\n{{\n    int state = 0;\n\n    while (*s) {{\n        switch (state) {{\n"
    );
    for state in 0..states {
        let letter = char::from(b'a' + numbers.below(26) as u8);
        let (to, other) = (numbers.below(states), numbers.below(states));
        line(&mut text, 2, format_args!("case {state}:"));
        line(
            &mut text,
            3,
            format_args!("state = *s == '{letter}' ? {to} : {other};"),
        );
        line(&mut text, 3, format_args!("break;"));
    }
    let last = numbers.below(states);
    write!(
        text,
        "        }}\n        s++;\n    }}\n    return state == {last};\n}}\n"
    )
    .expect("a string takes all");
    text
}

/// Pointers and the fields of structures.
fn lists(numbers: &mut Numbers, n: usize) -> String {
    let mut text = format!(
        "struct node *walk_{n}(struct node *list, unsigned key)\n{{\n    struct node *best = 0;\n\n    \
         for (struct node *at = list; at; at = at->next) {{\n"
    );
    for _ in 0..2 + numbers.below(5) {
        let (factor, bound) = (1 + numbers.below(99), numbers.below(10_000));
        let (place, letter) = (numbers.below(16), b'a' + numbers.below(26) as u8);
        let than = numbers.one_of(&["<", ">", "!="]);
        line(
            &mut text,
            2,
            format_args!("if (at->key * {factor} {than} key + {bound}) {{"),
        );
        line(
            &mut text,
            3,
            format_args!("at->weight += {factor}.5 * at->key;"),
        );
        line(
            &mut text,
            3,
            format_args!("at->name[{place}] = '{}';", char::from(letter)),
        );
        line(
            &mut text,
            3,
            format_args!("best = best && best->weight > at->weight ? best : at;"),
        );
        line(&mut text, 2, format_args!("}}"));
    }
    text.push_str("    }\n    return best;\n}\n");
    text
}

/// Floating point in nested loops.
fn matrix(numbers: &mut Numbers, n: usize) -> String {
    let size = 3 + numbers.below(14);
    let mut text = format!(
        "double matrix_{n}(double (*a)[{size}], double (*b)[{size}])\n{{\n    double sum = 0;\n\n    \
         for (int i = 0; i < {size}; i++)\n        for (int j = 0; j < {size}; j++) {{\n"
    );
    for _ in 0..2 + numbers.below(6) {
        let (to, from) = (numbers.one_of(&["a", "b"]), numbers.one_of(&["a", "b"]));
        let operator = numbers.one_of(&["+", "-", "*"]);
        let factor = numbers.below(1000);
        line(
            &mut text,
            3,
            format_args!("{to}[i][j] = {to}[i][j] {operator} {from}[j][i] * 0.{factor};"),
        );
    }
    text.push_str("            sum += a[i][j] - b[j][i];\n        }\n    return sum;\n}\n");
    text
}

/// Calls of functions above, with branches.
fn caller(numbers: &mut Numbers, n: usize, mixers: usize) -> String {
    let mut text = format!(
        "long choose_{n}(long x, long y)\n{{\n    unsigned words[8] = {{ x, y, {} }};\n\n",
        numbers.below(1 << 20)
    );
    for _ in 0..3 + numbers.below(6) {
        let (mixer, count) = (1 + numbers.below(mixers), 1 + numbers.below(8));
        let (bound, other) = (numbers.below(1 << 16), numbers.below(1 << 16));
        let than = numbers.one_of(&["<", ">", "=="]);
        line(&mut text, 1, format_args!("if (x {than} {bound})"));
        line(
            &mut text,
            2,
            format_args!("x += mix_{mixer}(words, {count});"),
        );
        line(
            &mut text,
            1,
            format_args!("else if (y / {} > x)", other + 1),
        );
        line(&mut text, 2, format_args!("y -= x % {};", bound + 1));
    }
    text.push_str("    return x * y;\n}\n");
    text
}

fn line(text: &mut String, depth: usize, content: std::fmt::Arguments<'_>) {
    writeln!(text, "{:1$}{content}", "", depth * 4).expect("a string takes all");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_made_again() {
        assert_eq!(text(10_000), text(10_000));
        assert_eq!(source(300), source(300));
    }

    #[test]
    fn what_is_made_is_as_long_as_asked_for() {
        assert_eq!(text(12_345).len(), 12_345);
        assert!(source(1_000).lines().count() >= 1_000);
    }
}
