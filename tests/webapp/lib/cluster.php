<?php
// What the toolkit says about this node, and whether this node may write.
declare(strict_types=1);

/** A state file of the toolkit, or null when it is missing or broken. Files are replaced whole, never half. */
function state_file(string $name): ?array
{
    $text = @file_get_contents(config_text('cluster.run_dir') . "/$name");
    $state = $text === false ? null : json_decode($text, true);
    return is_array($state) ? $state : null;
}

/** active, standby, changing, or unknown. */
function node_role(): string
{
    $role = state_file('role.json')['role'] ?? null;
    return in_array($role, ['active', 'standby', 'changing'], true) ? $role : 'unknown';
}

function node_name(): string
{
    $name = config_text('node.name');
    if ($name !== '') {
        return $name;
    }
    $name = state_file('sync.json')['node'] ?? null;
    return is_string($name) && $name !== '' ? $name : (gethostname() ?: 'unknown');
}

function require_active_role(): void
{
    match (node_role()) {
        'active' => null,
        'standby' => throw unavailable('not-active', 'This node is on standby, so it does not accept changes. The active node does; try again in a moment.'),
        'changing' => throw unavailable('not-active', 'The nodes are changing their roles, so this one does not accept changes now. Try again in a moment.'),
        default => throw unavailable('not-active', 'The role of this node is not known, so it does not accept changes.'),
    };
}

function require_writable_database(mysqli $db): void
{
    if (database_is_read_only($db)) {
        throw unavailable('read-only', 'The database of this node is read-only, so it does not accept changes. Try again in a moment.');
    }
}

/** Only a node that is active *and* has a writable database may change anything. */
function require_may_write(): void
{
    require_active_role();
    require_writable_database(database());
}

/** Why this node would refuse a change now, or null. */
function write_refusal(mysqli $db): ?string
{
    try {
        require_active_role();
        require_writable_database($db);
    } catch (Refusal $refusal) {
        return $refusal->getMessage();
    }
    return null;
}

/**
 * Asks the toolkit whether the file has reached a standby's disk: ['stored', null] or ['alone', reason].
 * No answer counts as alone: the file is here, and nobody has promised more.
 */
function wait_for_standby(string $path): array
{
    $end = microtime(true) + config_number('cluster.wait_seconds');
    $socket = @stream_socket_client('unix://' . config_text('cluster.run_dir') . '/sync.sock', $number, $text, 1.0);
    if ($socket === false) {
        return ['alone', 'the file synchronisation does not answer'];
    }
    stream_set_blocking($socket, false);
    // wait0 and a NUL: any path fits, even one with a newline.
    @fwrite($socket, "wait0 $path\0");
    $answer = '';
    while (!str_contains($answer, "\n") && strlen($answer) < 4096) {
        $left = $end - microtime(true);
        $read = [$socket];
        $write = $except = null;
        if ($left <= 0 || @stream_select($read, $write, $except, (int) $left, (int) (fmod($left, 1) * 1e6)) < 1) {
            fclose($socket);
            return ['alone', 'the file synchronisation did not answer in time'];
        }
        $part = fread($socket, 4096);
        if ($part === false || $part === '') {
            break;
        }
        $answer .= $part;
    }
    fclose($socket);
    return read_wait_answer(rtrim($answer, "\n"));
}

function read_wait_answer(string $answer): array
{
    if ($answer === 'stored') {
        return ['stored', null];
    }
    [$word, $reason] = explode(' ', $answer, 2) + ['', ''];
    if ($reason === '' || !in_array($word, ['alone', 'error'], true)) {
        return ['alone', 'the file synchronisation gave no reason'];
    }
    // It is kept in the database and shown, so only plain text.
    return ['alone', preg_replace('/[^\x20-\x7e]/', '?', substr($reason, 0, 200))];
}

function vip_is_here(): bool
{
    $vip = config_text('node.vip');
    if ($vip === '') {
        return false;
    }
    if (($_SERVER['SERVER_ADDR'] ?? '') === $vip) {
        return true;
    }
    foreach (net_get_interfaces() ?: [] as $interface) {
        foreach ($interface['unicast'] ?? [] as $address) {
            if (($address['address'] ?? '') === $vip) {
                return true;
            }
        }
    }
    return false;
}

/** Replication here: [word, seconds or null]. */
function replication_state(mysqli $db): array
{
    try {
        $channels = query_rows($db, 'SHOW ALL SLAVES STATUS');
    } catch (mysqli_sql_exception) {
        return ['unknown', null];
    }
    if ($channels === []) {
        return ['none', null];
    }
    $delays = array_column($channels, 'Seconds_Behind_Master');
    if (in_array(null, $delays, true)) {
        return ['stopped', null];
    }
    return ['running', max(array_map('intval', $delays))];
}

/** The database's part of the status. Short timeouts: a strip that hangs says nothing. */
function database_state(): array
{
    try {
        $db = open_database(1, 1);
        $read_only = database_is_read_only($db);
        [$word, $delay] = replication_state($db);
        return ['database' => $read_only ? 'read-only' : 'read-write', 'replication' => $word, 'delay' => $delay, 'refusal' => write_refusal($db)];
    } catch (mysqli_sql_exception) {
        return ['database' => 'no answer', 'replication' => 'unknown', 'delay' => null, 'refusal' => 'The database of this node does not answer.'];
    }
}

/** All that the strip shows, and `items` as it shows it. */
function cluster_status(): array
{
    $sync = state_file('sync.json');
    $database = database_state();
    $vip_here = vip_is_here();
    $behind = $sync['paths_behind'] ?? null;
    $status = [
        'ok' => true,
        'node' => node_name(),
        'role' => node_role(),
        'epoch' => state_file('role.json')['epoch'] ?? null,
        'vip' => config_text('node.vip'),
        'vip_here' => $vip_here,
        'vip_holder' => $vip_here ? node_name() : 'another node',
        'via_vip' => ($_SERVER['SERVER_ADDR'] ?? '') === config_text('node.vip'),
        'database' => $database['database'],
        'replication' => $database['replication'],
        'replication_delay_seconds' => $database['delay'],
        'files' => ['state' => is_string($sync['state'] ?? null) ? $sync['state'] : 'unknown', 'paths_behind' => is_int($behind) ? $behind : null],
        'accepts_changes' => $database['refusal'] === null,
        'refusal' => $database['refusal'],
    ];
    return $status + ['items' => strip_items($status)];
}

/** The strip: what is shown, and good, warn, bad or plain as its colour. */
function strip_items(array $status): array
{
    $replication = match ($status['replication']) {
        'none' => ['none here', 'plain'],
        'running' => [$status['replication_delay_seconds'] . ' s behind', $status['replication_delay_seconds'] > 5 ? 'warn' : 'good'],
        'stopped' => ['stopped', 'bad'],
        default => ['unknown', 'plain'],
    };
    $behind = $status['files']['paths_behind'];
    $files = $behind ? "$behind behind" : $status['files']['state'];
    return [
        ['key' => 'node', 'label' => 'Answered by', 'text' => $status['node'], 'tone' => 'plain'],
        ['key' => 'role', 'label' => 'Role', 'text' => $status['role'], 'tone' => ['active' => 'good', 'standby' => 'plain'][$status['role']] ?? 'warn'],
        ['key' => 'vip', 'label' => 'Virtual IP', 'text' => $status['vip_here'] ? 'on ' . $status['node'] : 'on another node', 'tone' => 'plain'],
        ['key' => 'database', 'label' => 'Database', 'text' => $status['database'], 'tone' => ['read-write' => 'good', 'read-only' => 'plain'][$status['database']] ?? 'bad'],
        ['key' => 'replication', 'label' => 'Replication', 'text' => $replication[0], 'tone' => $replication[1]],
        ['key' => 'files', 'label' => 'File sync', 'text' => $files, 'tone' => ['in-sync' => 'good', 'standby' => 'plain', 'held' => 'bad'][$status['files']['state']] ?? 'warn'],
    ];
}
