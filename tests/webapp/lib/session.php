<?php
// Who is asking, and whether a form is really theirs. Reading a session writes nothing: a read-only node
// must serve people who are logged in. So a session ends at a fixed time and not after idleness.
declare(strict_types=1);

const SESSION_COOKIE = 'ha_session';
const FORM_COOKIE = 'ha_form';

/** A cookie that looks like one of ours, or null. */
function token_cookie(string $name): ?string
{
    $value = $_COOKIE[$name] ?? null;
    return is_string($value) && preg_match('/\A[0-9a-f]{64}\z/', $value) === 1 ? $value : null;
}

function set_token_cookie(string $name, string $value): void
{
    $https = ($_SERVER['HTTPS'] ?? 'off') !== 'off';
    setcookie($name, $value, [
        'expires' => $value === '' ? 1 : 0,
        'path' => '/',
        'secure' => $https,
        'httponly' => true,
        'samesite' => 'Strict',
    ]);
    $_COOKIE[$name] = $value;
}

function logins_are_on(): bool
{
    return config_switch('logins.enabled');
}

/** ['id', 'name', 'role'] of the person who is logged in, or null. */
function current_account(): ?array
{
    static $account = false;
    if ($account !== false) {
        return $account;
    }
    if (!logins_are_on()) {
        return $account = ['id' => null, 'name' => 'anybody', 'role' => 'editor'];
    }
    $token = token_cookie(SESSION_COOKIE);
    if ($token === null) {
        return $account = null;
    }
    return $account = query_row(
        database(),
        'SELECT a.id, a.name, a.role FROM sessions s JOIN accounts a ON a.id = s.account_id
         WHERE s.token_hash = ? AND s.expires_at > UTC_TIMESTAMP(6)',
        [hash('sha256', $token)],
    );
}

/** The person who reads a page; without one, the login page. */
function require_reader(string $page): array
{
    $account = current_account();
    if ($account === null) {
        if (!wants_json() && request_method() === 'GET') {
            redirect("login.php?next=$page");
        }
        throw new Refusal(401, 'login', 'Log in first.');
    }
    return $account;
}

/** All that must be true before a person's change is looked at. */
function require_editor(): array
{
    require_may_write();
    require_whole_body();
    $account = require_reader('');
    require_form_token();
    if ($account['role'] !== 'editor') {
        throw new Refusal(403, 'viewer', 'Your account may look at everything and change nothing.');
    }
    return $account;
}

/** The key for tokens of people without a session; the same on every node, so that a form survives a failover. */
function form_key(): string
{
    $row = query_row(database(), "SELECT value FROM settings WHERE name = 'form_key'");
    return $row['value'] ?? throw new RuntimeException('settings holds no form_key: schema.sql has not been run');
}

function expected_form_token(): ?string
{
    if (logins_are_on() && current_account() !== null) {
        return hash_hmac('sha256', 'form', (string) token_cookie(SESSION_COOKIE));
    }
    $cookie = token_cookie(FORM_COOKIE);
    return $cookie === null ? null : hash_hmac('sha256', $cookie, form_key());
}

/** The token for the forms of a page. Call it before anything is sent: it may set a cookie. */
function form_token(): string
{
    if (expected_form_token() === null) {
        set_token_cookie(FORM_COOKIE, bin2hex(random_bytes(32)));
    }
    return expected_form_token();
}

function require_form_token(): void
{
    $expected = expected_form_token();
    $given = posted('csrf') ?? $_SERVER['HTTP_X_CSRF_TOKEN'] ?? '';
    if ($expected === null || !hash_equals($expected, $given)) {
        throw new Refusal(403, 'csrf', 'This form is no longer valid. Load the page again and repeat what you did.');
    }
}
