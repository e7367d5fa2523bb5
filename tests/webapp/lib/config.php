<?php
// The settings file, which lies outside the document root.
declare(strict_types=1);

const CONFIG_DEFAULTS = [
    'node.name' => '',
    'node.vip' => '',
    'database.socket' => '/run/mysqld/mysqld.sock',
    'database.user' => 'ha_user',
    'database.password' => '',
    'database.name' => 'ha_app',
    'database.connect_timeout' => '2',
    'database.read_timeout' => '5',
    'files.uploads_dir' => '/var/www/html/uploads',
    'files.max_bytes' => '16777216',
    'files.allowed_types' => 'txt',
    'logins.enabled' => 'on',
    'logins.session_hours' => '12',
    'logins.account_limit' => '5',
    'logins.address_limit' => '20',
    'logins.window_seconds' => '300',
    'pages.page_size' => '25',
    'machine.clients' => '127.0.0.1',
    'cluster.run_dir' => '/run/keepalived-companion',
    'cluster.wait_seconds' => '3',
];

function config_path(): string
{
    return getenv('HA_APP_CONFIG') ?: '/etc/ha-app/config.ini';
}

/** All settings as section.key => text. */
function config_all(): array
{
    static $all = null;
    if ($all !== null) {
        return $all;
    }
    // Raw: a password in double quotes may hold any character but a double quote.
    $sections = @parse_ini_file(config_path(), true, INI_SCANNER_RAW);
    if ($sections === false) {
        throw new RuntimeException('the settings cannot be read: ' . config_path());
    }
    $read = CONFIG_DEFAULTS;
    foreach ($sections as $section => $values) {
        foreach (is_array($values) ? $values : [] as $key => $value) {
            if (!array_key_exists("$section.$key", CONFIG_DEFAULTS) || !is_string($value)) {
                throw new RuntimeException(config_path() . ": unknown setting $key in [$section]");
            }
            $read["$section.$key"] = $value;
        }
    }
    return $all = $read;
}

function config_text(string $name): string
{
    return config_all()[$name];
}

function config_number(string $name): int
{
    $value = filter_var(config_text($name), FILTER_VALIDATE_INT, ['options' => ['min_range' => 1]]);
    if ($value === false) {
        throw new RuntimeException(config_path() . ": $name must be a whole number above 0");
    }
    return $value;
}

/** Only the known words for off switch something off: a typing error must not open the pages to everybody. */
function config_switch(string $name): bool
{
    return !in_array(strtolower(config_text($name)), ['off', 'no', 'false', '0'], true);
}

/** A list with commas between its words. */
function config_list(string $name): array
{
    return array_values(array_filter(array_map('trim', explode(',', config_text($name))), fn ($word) => $word !== ''));
}
