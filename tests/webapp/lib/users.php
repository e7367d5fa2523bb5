<?php
// The people in the list, and the numbers of the load generator.
declare(strict_types=1);

/** [rows, the id to go on before or null], newest first. By key and not by offset: deep pages stay quick. */
function newest_first(string $table, string $columns, ?int $before): array
{
    $size = config_number('pages.page_size');
    $rows = query_rows(
        database(),
        "SELECT $columns FROM $table WHERE id < ? ORDER BY id DESC LIMIT " . ($size + 1),
        [$before ?? PHP_INT_MAX],
    );
    $more = count($rows) > $size;
    $rows = array_slice($rows, 0, $size);
    return [$rows, $more ? (int) end($rows)['id'] : null];
}

function user_for_json(array $row): array
{
    return ['id' => (int) $row['id'], 'uid' => $row['uid'], 'name' => $row['name'], 'created_at' => utc_text($row['created_at'])];
}

/** Adds a person with a random name; returns id, uid and name. */
function add_random_user(): array
{
    $name = random_word(FIRST_NAMES) . ' ' . random_word(LAST_NAMES);
    $uid = bin2hex(random_bytes(8));
    $id = change_database(function (mysqli $db) use ($name, $uid) {
        query($db, 'INSERT INTO users (uid, name, created_at) VALUES (?, ?, UTC_TIMESTAMP(6))', [$uid, $name]);
        return (int) $db->insert_id;
    });
    return ['id' => $id, 'uid' => $uid, 'name' => $name];
}

function random_word(array $words): string
{
    return $words[random_int(0, count($words) - 1)];
}

/** Stores a number of a writer. The same number again is fine: a retry must be safe. */
function add_number(int $writer, int $number): array
{
    try {
        return ['id' => change_database(function (mysqli $db) use ($writer, $number) {
            query($db, 'INSERT INTO `rows` (writer, n, at) VALUES (?, ?, UTC_TIMESTAMP(6))', [$writer, $number]);
            return (int) $db->insert_id;
        })];
    } catch (mysqli_sql_exception $failure) {
        if ($failure->getCode() !== DUPLICATE_KEY) {
            throw $failure;
        }
    }
    $row = query_row(database(), 'SELECT id FROM `rows` WHERE writer = ? AND n = ?', [$writer, $number]);
    if ($row === null) {
        throw unavailable('database', 'The number was there and is gone. Try again.');
    }
    return ['id' => (int) $row['id'], 'already' => true];
}
