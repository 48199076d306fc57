//! What templates may say, and what becomes of a table.

use super::*;

fn leaf(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
    Leaf { eax, ebx, ecx, edx }
}

/// A processor that has everything.
fn rich() -> Table {
    let all = u32::MAX;
    let mut table = Table::default();
    table.set(0, None, leaf(0x1f, 1, 2, 3));
    table.set(1, None, leaf(0x00a2_0f10, 0x0800, all, all));
    table.set(7, Some(0), leaf(2, all, all, all));
    table.set(7, Some(1), leaf(all, all, all, all));
    table.set(0xd, Some(0), leaf(0x6_02e7, 0x1000, 0x2b00, 0));
    table.set(0xd, Some(1), leaf(0x1f, 0x1000, 0x1800, 0));
    for (number, size, offset) in [
        (2, 256, 576),
        (5, 64, 1088),
        (6, 512, 1152),
        (7, 1024, 1664),
        (9, 8, 2688),
        (18, 8192, 2816),
    ] {
        table.set(0xd, Some(number), leaf(size, offset, 0, 0));
    }
    table.set(0xd, Some(11), leaf(16, 0, 1, 0));
    table.set(0x8000_0001, None, leaf(0, 0, all, all));
    table.set(0x8000_0008, None, leaf(0x3030, all, 3, 0));
    table
}

fn refusal(text: &str) -> String {
    Template::parse("mine", text).unwrap_err().to_string()
}

#[test]
fn every_template_that_comes_along_can_be_read_and_fits_a_rich_processor() {
    for name in names() {
        let template = Template::load(name).unwrap();
        let once = template.apply(&rich()).unwrap();
        assert_eq!(
            template.apply(&once).unwrap(),
            once,
            "{name}: twice is once"
        );
    }
}

/// The psABI's table: what each level has and the next one brings.
#[test]
fn levels_have_what_they_are_named_for_and_nothing_beyond() {
    let at = |name: &str| Template::load(name).unwrap().apply(&rich()).unwrap();
    let (two, three, four) = (at("x86-64-v2"), at("x86-64-v3"), at("x86-64-v4"));
    let bit = |table: &Table, leaf, register: Register, bit: u32| {
        register.of(&table.get(leaf, 0)) >> bit & 1 != 0
    };
    use Register::{Ebx, Ecx};
    for (leaf, register, number, in_two, in_three, in_four) in [
        (1, Ecx, 0, true, true, true),              // SSE3
        (1, Ecx, 13, true, true, true),             // CMPXCHG16B
        (1, Ecx, 20, true, true, true),             // SSE4.2
        (1, Ecx, 23, true, true, true),             // POPCNT
        (0x8000_0001, Ecx, 0, true, true, true),    // LAHF
        (1, Ecx, 12, false, true, true),            // FMA
        (1, Ecx, 22, false, true, true),            // MOVBE
        (1, Ecx, 26, false, true, true),            // XSAVE
        (1, Ecx, 28, false, true, true),            // AVX
        (1, Ecx, 29, false, true, true),            // F16C
        (7, Ebx, 3, false, true, true),             // BMI1
        (7, Ebx, 5, false, true, true),             // AVX2
        (7, Ebx, 8, false, true, true),             // BMI2
        (0x8000_0001, Ecx, 5, false, true, true),   // LZCNT
        (7, Ebx, 16, false, false, true),           // AVX512F
        (7, Ebx, 17, false, false, true),           // AVX512DQ
        (7, Ebx, 28, false, false, true),           // AVX512CD
        (7, Ebx, 30, false, false, true),           // AVX512BW
        (7, Ebx, 31, false, false, true),           // AVX512VL
        (1, Ecx, 25, false, false, false),          // AES
        (1, Ecx, 30, false, false, false),          // RDRAND
        (7, Ebx, 29, false, false, false),          // SHA
        (7, Ebx, 21, false, false, false),          // AVX512_IFMA
        (7, Ecx, 16, false, false, false),          // LA57
        (0x8000_0001, Ecx, 2, false, false, false), // SVM
    ] {
        let found = [&two, &three, &four].map(|table| bit(table, leaf, register, number));
        assert_eq!(
            found,
            [in_two, in_three, in_four],
            "leaf {leaf:#x} bit {number}"
        );
    }
    let components = |table: &Table| table.get(0xd, 0);
    assert_eq!((components(&two).eax, components(&two).ecx), (0, 0));
    assert_eq!((components(&three).eax, components(&three).ecx), (7, 832));
    assert_eq!((components(&four).eax, components(&four).ecx), (0xe7, 2688));
    assert_eq!(three.get(0xd, 5), Leaf::default(), "no such component");
    assert_eq!(four.get(0xd, 7), leaf(1024, 1664, 0, 0));
    assert_eq!(three.get(1, 0).eax, 0x00a2_0f10, "who it is stays");
}

#[test]
fn what_is_promised_and_not_there_is_named_in_full() {
    let mut poor = rich();
    let one = poor.get(1, 0);
    poor.set(
        1,
        None,
        Leaf {
            ecx: one.ecx & !(1 << 28),
            ..one
        },
    );
    poor.set(7, Some(0), Leaf::default());
    let template = Template::load("x86-64-v3").unwrap();
    let refused = template.apply(&poor).unwrap_err().to_string();
    for missing in [
        "AVX (leaf 0x1.0 ECX bit 28)",
        "AVX2 (leaf 0x7.0 EBX bit 5)",
        "BMI2 (leaf 0x7.0 EBX bit 8)",
    ] {
        assert!(refused.contains(missing), "{refused}");
    }
    assert!(
        !refused.contains("FMA") && !refused.contains('\n'),
        "{refused}"
    );
    assert!(Template::load("x86-64-v2").unwrap().apply(&poor).is_ok());
}

#[test]
fn registers_that_hold_no_features_may_be_set() {
    let text = r#"{"cpuid_modifiers": [{"leaf": "1", "subleaf": "0", "flags": 0,
        "modifiers": [{"register": "eax", "bitmap": "0b0000_0000_0000_0101_0000_0110_0101_0100"}]}]}"#;
    let table = Template::parse("mine", text)
        .unwrap()
        .apply(&rich())
        .unwrap();
    assert_eq!(table.get(1, 0).eax, 0x0005_0654);
}

#[test]
fn a_short_bitmap_leaves_the_upper_bits_alone() {
    let text = r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1x0"}]}"#;
    let template = Template::parse("mine", text).unwrap();
    let [change] = template.msrs() else { panic!() };
    assert_eq!(
        (change.msr, change.apply(0xff03), change.apply(0)),
        (0x10a, 0xff06, 4)
    );
}

#[test]
fn a_file_that_is_no_template_is_refused_with_the_place() {
    let leaf = |inside: &str| {
        format!(
            r#"{{"cpuid_modifiers": [{{"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [{inside}]}}]}}"#
        )
    };
    let table = [
        ("".to_owned(), "EOF"),
        (r#"{"cpu_modifiers": []}"#.into(), "unknown field `cpu_modifiers`"),
        (r#"{"kvm_capabilities": ["!171"]}"#.into(), "\"!171\""),
        (leaf(r#"{"register": "rax", "bitmap": "0b1"}"#), "unknown variant `rax`"),
        (leaf(r#"{"register": "ebx", "bitmap": "101"}"#), "does not begin with 0b"),
        (leaf(r#"{"register": "ebx", "bitmap": "0b"}"#), "has 0 bits"),
        (leaf(r#"{"register": "ebx", "bitmap": "0b12"}"#), "leaf 0x7, subleaf 0x0: the bitmap"),
        (
            leaf(&format!(r#"{{"register": "ebx", "bitmap": "0b{}"}}"#, "x".repeat(33))),
            "33 bits, not 1 to 32",
        ),
        (
            leaf(r#"{"register": "ebx", "bitmap": "0b1"}, {"register": "ebx", "bitmap": "0b0"}"#),
            "Ebx is there twice",
        ),
        (
            r#"{"cpuid_modifiers": [{"leaf": "seven", "subleaf": "0", "flags": 0, "modifiers": []}]}"#.into(),
            "\"seven\" is no number",
        ),
        (
            r#"{"cpuid_modifiers": [{"leaf": "0x+7", "subleaf": "0", "flags": 0, "modifiers": []}]}"#.into(),
            "\"0x+7\" is no number",
        ),
        (
            r#"{"cpuid_modifiers": [{"leaf": "7", "subleaf": "0", "flags": 8, "modifiers": []}]}"#.into(),
            "flags 0x8",
        ),
        (
            r#"{"msr_modifiers": [{"addr": "1", "bitmap": "0b1"}, {"addr": "0x1", "bitmap": "0b1"}]}"#.into(),
            "MSR 0x1 is there twice",
        ),
    ];
    for (text, told) in table {
        let refused = refusal(&text);
        assert!(
            refused.contains(told) && refused.contains("\"mine\""),
            "{told}: {refused}"
        );
    }
}

#[test]
fn a_name_that_is_no_template_says_which_there_are() {
    let refused = Template::load("T2").unwrap_err().to_string();
    assert!(
        refused.contains("\"T2\"") && refused.contains("x86-64-v3"),
        "{refused}"
    );
}
