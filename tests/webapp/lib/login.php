<?php
// Logging in and out, with a brake on guessing.
declare(strict_types=1);

// A hash that no password fits. Verified for unknown names, so that they take as long as known ones.
const DUMMY_HASH = '$2y$10$jL1DfnJjjaz1GTe.p4HmPuTbPSPM88UYqg.Bjgga.CvBCW5JI30fS';

function is_account_name(string $name): bool
{
    return preg_match('/\A[A-Za-z0-9._-]{1,64}\z/', $name) === 1;
}

function password_hash_of(string $password): string
{
    // The cost is the dummy's, so that both take equally long.
    return password_hash($password, PASSWORD_BCRYPT, ['cost' => 10]);
}

function create_account(string $name, string $role, string $password): void
{
    query(
        database(),
        'INSERT INTO accounts (name, role, password_hash, created_at) VALUES (?, ?, ?, UTC_TIMESTAMP(6))',
        [$name, $role, password_hash_of($password)],
    );
}

/** Seconds until one more attempt is allowed, or 0. */
function throttle_seconds(mysqli $db, string $column, string $value, int $limit): int
{
    $window = config_number('logins.window_seconds');
    // The attempt that makes the count too high is the one to wait for: it must leave the window.
    $row = query_row(
        $db,
        "SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(6), at + INTERVAL ? SECOND) + 1 AS seconds FROM login_attempts
         WHERE $column = ? AND at > UTC_TIMESTAMP(6) - INTERVAL ? SECOND ORDER BY at DESC, id DESC LIMIT 1 OFFSET ?",
        [$window, $value, $window, $limit],
    );
    return $row === null ? 0 : max(1, (int) $row['seconds']);
}

/** Notes an attempt and returns its number; too many are refused and not counted. */
function begin_attempt(string $name): int
{
    $address = substr($_SERVER['REMOTE_ADDR'] ?? '', 0, 45);
    // Noted before the password is looked at: many attempts at once must not pass the count together.
    [$attempt, $wait] = change_database(function (mysqli $db) use ($name, $address) {
        $window = config_number('logins.window_seconds');
        query($db, 'DELETE FROM login_attempts WHERE at < UTC_TIMESTAMP(6) - INTERVAL ? SECOND LIMIT 100', [$window]);
        query($db, 'INSERT INTO login_attempts (name, address, at) VALUES (?, ?, UTC_TIMESTAMP(6))', [$name, $address]);
        $attempt = (int) $db->insert_id;
        $wait = max(
            // An unfit name belongs to nobody and is braked by its address alone.
            $name === '' ? 0 : throttle_seconds($db, 'name', $name, config_number('logins.account_limit')),
            throttle_seconds($db, 'address', $address, config_number('logins.address_limit')),
        );
        if ($wait > 0) {
            query($db, 'DELETE FROM login_attempts WHERE id = ?', [$attempt]);
        }
        return [$attempt, $wait];
    });
    if ($wait > 0) {
        throw new Refusal(429, 'throttled', "Too many attempts. Try again in $wait seconds.", $wait);
    }
    return $attempt;
}

/** Checks name and password and begins a session. Returns the account. */
function log_in(string $name, string $password): array
{
    $attempt = begin_attempt(is_account_name($name) ? $name : '');
    $account = is_account_name($name)
        ? query_row(database(), 'SELECT id, name, role, password_hash FROM accounts WHERE name = ?', [$name])
        : null;
    $fits = password_verify($password, $account['password_hash'] ?? DUMMY_HASH);
    if ($account === null || !$fits) {
        throw new Refusal(401, 'login', 'The name or the password is wrong.');
    }
    $token = bin2hex(random_bytes(32));
    $old = token_cookie(SESSION_COOKIE);
    change_database(function (mysqli $db) use ($account, $attempt, $token, $old) {
        query($db, 'DELETE FROM login_attempts WHERE name = ? OR id = ?', [$account['name'], $attempt]);
        query($db, 'DELETE FROM sessions WHERE expires_at < UTC_TIMESTAMP(6) LIMIT 100');
        if ($old !== null) {
            query($db, 'DELETE FROM sessions WHERE token_hash = ?', [hash('sha256', $old)]);
        }
        query(
            $db,
            'INSERT INTO sessions (token_hash, account_id, created_at, expires_at)
             VALUES (?, ?, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) + INTERVAL ? HOUR)',
            [hash('sha256', $token), $account['id'], config_number('logins.session_hours')],
        );
    });
    // A new token at each login, and only after it is committed.
    set_token_cookie(SESSION_COOKIE, $token);
    return ['name' => $account['name'], 'role' => $account['role'], 'csrf' => hash_hmac('sha256', 'form', $token)];
}

function log_out(): void
{
    $token = (string) token_cookie(SESSION_COOKIE);
    change_database(fn (mysqli $db) => query($db, 'DELETE FROM sessions WHERE token_hash = ?', [hash('sha256', $token)]));
    set_token_cookie(SESSION_COOKIE, '');
}
