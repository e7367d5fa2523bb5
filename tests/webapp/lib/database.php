<?php
// The database of this node, by its socket. Prepared statements only.
declare(strict_types=1);

// Refused because it is read-only now (1290, 1836, 1792, 1223): certainly nothing was changed.
const READ_ONLY_ERRORS = [1223, 1290, 1792, 1836];

// The server or the connection is away, overloaded or ended the statement.
const AWAY_ERRORS = [1040, 1053, 1077, 1078, 1079, 1129, 1152, 1158, 1159, 1160, 1161, 1180, 1203, 1205, 1213, 1317, 1927, 1969, 2002, 2003, 2006, 2013, 2014, 2055];

const DUPLICATE_KEY = 1062;
const CONNECTION_LOST = 2013;

/** A new connection. */
function open_database(int $connect_timeout, int $read_timeout): mysqli
{
    mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);
    $db = mysqli_init();
    $db->options(MYSQLI_OPT_CONNECT_TIMEOUT, $connect_timeout);
    $db->options(MYSQLI_OPT_READ_TIMEOUT, $read_timeout);
    $db->options(MYSQLI_INIT_COMMAND, "SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = 2");
    // The failure is thrown; the warning beside it would only fill the log.
    throw_if_false(@$db->real_connect(
        'localhost',
        config_text('database.user'),
        config_text('database.password'),
        config_text('database.name'),
        0,
        config_text('database.socket'),
    ));
    $db->set_charset('utf8mb4');
    return $db;
}

/** The connection of this request. A failure is kept too: the error page must not wait for it once more. */
function database(): mysqli
{
    static $db = null;
    if ($db === null) {
        try {
            $db = open_database(config_number('database.connect_timeout'), config_number('database.read_timeout'));
        } catch (mysqli_sql_exception $failure) {
            $db = $failure;
        }
    }
    return $db instanceof mysqli ? $db : throw $db;
}

/** A connection that dies at the wrong moment makes mysqli answer false without throwing. */
function throw_if_false(mixed $result): mixed
{
    return $result !== false ? $result : throw new mysqli_sql_exception('the connection was lost', CONNECTION_LOST);
}

function query(mysqli $db, string $sql, array $values = []): mysqli_result|bool
{
    return throw_if_false(@$db->execute_query($sql, $values));
}

/** A statement without values or rows, in one round trip. */
function command(mysqli $db, string $sql): void
{
    throw_if_false(@$db->query($sql));
}

function query_rows(mysqli $db, string $sql, array $values = []): array
{
    return query($db, $sql, $values)->fetch_all(MYSQLI_ASSOC);
}

function query_row(mysqli $db, string $sql, array $values = []): ?array
{
    return query($db, $sql, $values)->fetch_assoc() ?: null;
}

function database_is_read_only(mysqli $db): bool
{
    // 10.11 says 0 or 1, later versions may say OFF or a word for how strict it is.
    return !in_array((string) query_row($db, 'SELECT @@global.read_only AS ro')['ro'], ['0', 'OFF'], true);
}

function database_is_away(mysqli_sql_exception $failure): bool
{
    return in_array($failure->getCode(), [...READ_ONLY_ERRORS, ...AWAY_ERRORS], true);
}

function database_refusal(mysqli_sql_exception $failure): Refusal
{
    if (in_array($failure->getCode(), READ_ONLY_ERRORS, true)) {
        return unavailable('read-only', 'The database of this node has become read-only, so nothing was changed. Try again in a moment.');
    }
    return unavailable('database', 'The database of this node does not answer. Try again in a moment.');
}

function roll_back(mysqli $db): void
{
    try {
        command($db, 'ROLLBACK');
    } catch (mysqli_sql_exception) {
        // The connection is gone, and the transaction with it.
    }
}

/**
 * Runs $change in a transaction and returns what it returned, after COMMIT and never before.
 * Throws code `unknown` when nobody can say whether it was committed.
 */
function change_database(callable $change): mixed
{
    $db = database();
    // Asked again here: since the request began it may have become a standby.
    require_active_role();
    try {
        command($db, 'START TRANSACTION');
        require_writable_database($db);
        $result = $change($db);
    } catch (Throwable $failure) {
        roll_back($db);
        throw $failure;
    }
    try {
        command($db, 'COMMIT');
    } catch (mysqli_sql_exception $failure) {
        roll_back($db);
        if (in_array($failure->getCode(), READ_ONLY_ERRORS, true)) {
            throw database_refusal($failure);
        }
        error_log('ha-app: COMMIT: ' . $failure->getMessage());
        throw unavailable('unknown', 'The connection was lost while this was being saved, so it is not known whether it was. Look at the list before you try again.');
    }
    return $result;
}
