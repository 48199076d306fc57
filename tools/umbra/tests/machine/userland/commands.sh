# Fifty commands of bash and coreutils. Each line is one; what they print depends on nothing but them.
seq 1 400 > numbers; seq -f '%08.3f' 0 0.125 3 | head -n 7
printf '%s\n' pear apple fig Banana cherry apple | tee fruit | sort -u
sort -rn numbers | head -n 5 | paste -sd, -
sort -t. -k2,2 -k1,1nr <(seq -f '%.2f' 0 0.31 9) | tail -n 4
uniq -c <(sort fruit) | tr -s ' '
cut -c1-3 fruit | tr 'a-z' 'A-Z'
comm -12 <(seq 1 3 40 | sort) <(seq 1 5 40 | sort)
join <(printf '1 a\n2 b\n3 c\n') <(printf '1 x\n3 z\n')
paste -d: fruit <(seq 1 6)
tac fruit | nl -ba -w3
fold -w 13 <<< 'the quick brown fox jumps over the lazy dog' | fmt -w 20
wc numbers fruit
od -An -tx1z -v fruit | head -n 3
od -An -tf8 -tu4 <(printf '\0\0\0\0\0\0\360\77')
md5sum numbers; sha1sum numbers; sha224sum fruit
sha256sum numbers fruit; sha512sum fruit
b2sum numbers; cksum fruit numbers; sum numbers
base64 -w 40 numbers | tail -n 2; base32 fruit | base32 -d | cmp_with() { local a; a=$(cat); [ "$a" = "$(cat fruit)" ] && echo same; }; base64 fruit | base64 -d | cmp_with
basenc --base16 fruit | head -c 40; echo
factor 1000000007 1234567890123456789 18446744073709551557 340282366920938463463374607431768211297
numfmt --to=iec 123456789 1024 999999999999; numfmt --from=si 4.5M
expr 17 '*' 23 % 100; expr match abcdefg 'abc\(.*\)g'
echo $((2**62 + 12345 * -7)) $((0x7fffffffffffffff + 1)) $((-17 / 5)) $((-17 % 5)) $((1 << 40 ^ 0xff))
for i in {1..20}; do printf '%d ' $((i * i * i % 37)); done; echo
fib() { (($1 < 2)) && echo $1 && return; echo $(($(fib $(($1 - 1))) + $(fib $(($1 - 2))))); }; fib 7
primes=(); for ((n = 2; n < 300; n++)); do for p in "${primes[@]}"; do ((n % p)) || continue 2; done; primes+=("$n"); done; echo "${#primes[@]} ${primes[*]: -5}"
declare -A count; while read -r -n1 c; do [[ $c ]] && count[$c]=$((${count[$c]:-0} + 1)); done < fruit; for c in "${!count[@]}"; do echo "$c=${count[$c]}"; done | sort
text='Hello, World'; echo "${text^^} ${text,,} ${text/o/0} ${text//o/0} ${text:7:3} ${#text} ${text%%,*} ${text##* }"
[[ 'key-42=value' =~ ^([a-z]+)-([0-9]+)=(.*)$ ]] && echo "${BASH_REMATCH[@]:1}"
printf '%05d|%-8s|%+.3e|%x|%q|%b\n' 42 left 12345.678 255 'a b' 'tab\there'
mapfile -t lines < fruit; echo "${lines[@]:1:3}" "${#lines[@]}"
cat <<< "$(for i in c a b; do echo "$i"; done | sort)" | tr '\n' ' '; echo
mkdir -p d/e/f; touch d/e/f/g; ln -s e/f d/link; readlink d/link; realpath --relative-to=. d/link/g
cp -r d d2; mv d2/e/f/g d2/h; rm -r d/e; find_all() { local f; for f in "$1"/*; do echo "$f"; [[ -d $f && ! -L $f ]] && find_all "$f"; done; true; }; find_all d2
touch -d '2001-02-03 04:05:06 UTC' old; stat -c '%n %s %F %a %Y' old numbers | sed_like() { while read -r a b; do echo "$a: ${b% *}"; done; }; stat -c '%n %s %F' old numbers | sed_like
chmod 640 old; stat -c %A old; install -m 755 old new; stat -c '%a %A' new; umask 027; : > masked; stat -c %a masked
truncate -s 100000 hole; stat -c %s hole; dd if=numbers of=hole bs=1 seek=50000 conv=notrunc status=none; sha256sum < hole
split -l 100 numbers part.; wc -l part.* | tail -n 1; cat part.* | cmp_files() { [ "$(cat)" = "$(cat numbers)" ] && echo equal; }; cat part.* | cmp_files
csplit -s numbers 101 '{1}'; head -qn 1 xx*
printf 'a b\nb c\na d\nd c\n' | tsort | tr '\n' ' '; echo
shuf --random-source=numbers -i 1-20 | paste -sd' ' -
date -u -d @1234567890 '+%F %T %j %U %A'; date -u -d '2024-02-29 + 1 year' +%F
basename /usr/lib/libx.so.1 .1; dirname /usr/lib/libx.so.1; pathchk -p 'good_name' && echo portable
expand -t 4 <(printf 'a\tb\n') | unexpand -a -t 2 | od -c | head -n 1; ptx -w 40 <<< 'one two three'
pr -3 -t -l 5 -w 40 <(seq 1 15); column() { printf '%-10s%s\n' "$@"; }; column a 1 b 2
for i in 1 2 3 4; do (sleep 0.0$i; echo "job $i" > job.$i) & done; wait; cat job.*
trap 'echo trapped $?' EXIT; (exit 3); echo "status $?"; false | true; echo "${PIPESTATUS[@]}"; trap - EXIT
timeout 0.1 sleep 5; echo "timeout says $?"; env -i A=1 B=2 env | sort; kill -l 15; (kill -9 $BASHPID) ; echo "killed $?"
exec 5<> pipe.txt; echo through >&5; exec 5>&-; cat pipe.txt; coproc UP { while read -r l; do echo "${l^^}"; done; }; echo quiet >&"${UP[1]}"; read -r answer <&"${UP[0]}"; echo "$answer"
sum=0; while read -r n; do ((sum += n)); done < numbers; echo "sum $sum"; yes abc | head -n 20000 | md5sum; head -c 300000 < <(yes 0123456789) | sha256sum
