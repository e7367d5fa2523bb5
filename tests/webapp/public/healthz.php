<?php
// For check-apache: 200 when PHP and this application work. It never asks the database.
declare(strict_types=1);

require (getenv('HA_APP_LIB') ?: '/usr/local/share/ha-app') . '/app.php';

run(function () {
    require_method('GET');
    send_json(200, ['ok' => true, 'node' => node_name(), 'role' => node_role()]);
});
