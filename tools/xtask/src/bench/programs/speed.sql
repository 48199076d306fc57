-- The kinds of work that SQLite's own speedtest1 does: rows in order and out of it, with and without an
-- index, ranges, patterns, sorting, changes, deletion, joins, subqueries. All is computed from row numbers.
PRAGMA cache_size = 2000;
CREATE TEMP VIEW numbers AS
  WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) SELECT i FROM n;

-- Rows without an index, in order by a key, and out of order by a key.
BEGIN;
CREATE TABLE plain(a INTEGER, b INTEGER, c TEXT);
INSERT INTO plain SELECT i, (i * 7919 + 104729) % 200003, printf('%d is %08x', i, (i * 2654435761) & 4294967295)
  FROM numbers;
COMMIT;
BEGIN;
CREATE TABLE ordered(a INTEGER PRIMARY KEY, b INTEGER, c TEXT);
INSERT INTO ordered SELECT a, b, c FROM plain ORDER BY a;
COMMIT;
BEGIN;
CREATE TABLE mixed(a INTEGER PRIMARY KEY, b INTEGER, c TEXT UNIQUE);
INSERT INTO mixed SELECT b, a, c FROM plain;
COMMIT;

-- Ranges and patterns without an index.
SELECT k, (SELECT count(*) || ' ' || avg(b) FROM plain WHERE b BETWEEN k * 1000 AND k * 1000 + 9000)
  FROM (SELECT i AS k FROM numbers LIMIT 20);
SELECT k, (SELECT count(*) || ' ' || sum(length(c)) FROM plain WHERE c LIKE '%' || k || 'f%')
  FROM (SELECT i AS k FROM numbers LIMIT 10);
SELECT sum(n * a) FROM (SELECT a, row_number() OVER (ORDER BY c) % 101 AS n FROM plain);
SELECT c FROM plain ORDER BY b % 5003, c DESC LIMIT 20;

-- The same with indices.
CREATE INDEX plain_b ON plain(b);
CREATE INDEX plain_c ON plain(c);
CREATE INDEX ordered_b ON ordered(b, c);
SELECT sum(found) FROM (
  SELECT (SELECT count(*) + avg(b) FROM plain WHERE b BETWEEN k * 10 AND k * 10 + 90) AS found
  FROM (SELECT i AS k FROM numbers LIMIT 15000));
SELECT sum(found) FROM (
  SELECT (SELECT a FROM mixed WHERE c = printf('%d is %08x', k * 3, (k * 3 * 2654435761) & 4294967295)) AS found
  FROM (SELECT i AS k FROM numbers LIMIT 60000));

-- Changes, of ranges, of single rows and of all.
BEGIN;
UPDATE ordered SET b = b + 17 WHERE a % 3 = 0;
UPDATE mixed SET b = b * 2 WHERE a BETWEEN 20000 AND 90000;
UPDATE plain SET c = substr(c, 4) || a;
ALTER TABLE mixed ADD COLUMN d INTEGER DEFAULT 123;
UPDATE mixed SET d = (SELECT b FROM ordered WHERE ordered.a = mixed.a) WHERE a % 2 = 0;
COMMIT;
SELECT sum(b), sum(d), count(DISTINCT d) FROM mixed;

-- Joins and subqueries.
SELECT count(*), sum(length(x.c) + y.a - z.b) FROM plain AS x
  JOIN ordered AS y ON y.b = x.b JOIN mixed AS z ON z.a = y.a WHERE x.b % 2 = 1;
SELECT count(*), total(a) FROM plain WHERE b IN (SELECT d FROM mixed WHERE d % 7 < 3)
  AND NOT EXISTS (SELECT 1 FROM ordered WHERE ordered.a = plain.a AND ordered.b % 5 = 0);
SELECT b % 16, count(*), min(c), max(c), round(avg(a), 3), group_concat(a % 10, '') FILTER (WHERE a < 400)
  FROM ordered GROUP BY b % 16 ORDER BY 1;

-- Deletion and refilling.
BEGIN;
DELETE FROM plain WHERE b BETWEEN 40000 AND 120000;
DELETE FROM mixed WHERE a % 5 = 1;
REPLACE INTO ordered SELECT a + 100000, a, c FROM plain;
INSERT OR IGNORE INTO mixed(a, b, c) SELECT b, a, c FROM plain;
COMMIT;
SELECT (SELECT count(*) FROM plain), (SELECT count(*) FROM ordered), (SELECT count(*) FROM mixed);

ANALYZE;
VACUUM;
PRAGMA integrity_check;
