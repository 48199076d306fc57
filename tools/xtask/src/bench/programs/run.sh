# Runs the programs in turn, the same in a guest and natively. Times go to results/times, a line each: name,
# microseconds, status. What they computed goes to results/NAME.
export PATH=/usr/bin:/bin HOME=/tmp LC_ALL=C TZ=UTC PYTHONHASHSEED=0
cd /tmp
mkdir results logs

timed() {
    local name=$1 begin=$EPOCHREALTIME end status
    shift
    "$@" > "logs/$name" 2>&1
    status=$?
    end=$EPOCHREALTIME
    echo "$name $((${end/./} - ${begin/./})) $status" >> results/times
    [ $status = 0 ] || cp "logs/$name" "results/$name.log"
}

# A test's name and how it ended are said on a line, or on the next but for its description.
outcomes() {
    sed -n -E '/ \.\.\. |^Ran |^OK|^FAILED|^(ERROR|FAIL):/ { s/^(Ran .*) in .*/\1/; p }' "logs/$1" > "results/$1"
}

for module in json re difflib heapq statistics ast decimal random tokenize itertools datetime collections; do
    timed "test_$module" python3 -m test -v "test_$module"
    outcomes "test_$module"
done

timed gzip gzip -k text
sha256sum text.gz > results/gzip
rm text
timed gunzip gzip -d text.gz
sha256sum text > results/gunzip

timed xz xz -1 -k text
sha256sum text.xz > results/xz
rm text
timed unxz xz -d text.xz
sha256sum text > results/unxz
rm text

timed gcc gcc -O1 -c source.c -o source.o
sha256sum source.o > results/gcc

timed sqlite3 sqlite3 -bail -init speed.sql database .exit
{ cat logs/sqlite3; sha256sum database; } > results/sqlite3
