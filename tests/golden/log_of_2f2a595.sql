BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE api_keys (
	id VARCHAR NOT NULL, 
	organization_id VARCHAR NOT NULL, 
	label VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	created DOUBLE NOT NULL, 
	revoked DOUBLE, 
	PRIMARY KEY (id), 
	FOREIGN KEY(organization_id) REFERENCES organizations (id), 
	UNIQUE (digest)
);
CREATE TABLE cells (
	identity VARCHAR NOT NULL, 
	blob VARCHAR NOT NULL, 
	request TEXT NOT NULL, 
	weights VARCHAR NOT NULL, 
	precision VARCHAR NOT NULL, 
	width INTEGER NOT NULL, 
	height INTEGER NOT NULL, 
	steps INTEGER NOT NULL, 
	seconds FLOAT NOT NULL, 
	provenance JSON NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (identity)
);
INSERT INTO "cells" VALUES('c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','937d6973a208a2d8be4aa2402f3f599a48db75fb745509f2c542aa9aae17c7b2.png','{"weights":"pocket","precision":"fp32","prompt":"a red fox","seed":7,"width":64,"height":64,"steps":4,"guidance":1.0,"lora":null,"strength":"0","references":[]}','pocket','fp32',64,64,4,0.25,'{"backend": "drawing", "device": "cpu", "batch_size": "1"}','2026-11-25 09:27:28.353325');
INSERT INTO "cells" VALUES('820ef992340a18dac2b53a8fd2267fff93eb1e6eeb5e3b63bd6470c5f4c7214e','b7447d3d25b8c6420e5759872dcae8adad8456a471304e876c446fd8ac56c4ac.png','{"weights":"pocket","precision":"fp32","prompt":"a red fox","seed":7,"width":64,"height":64,"steps":4,"guidance":1.0,"lora":{"name":"style","path":"/home/of/someone/loras/style.safetensors","sha256":"b6e8b2f8f22ddb41ceaf687879319903c2bdcf641658dfc1cf10e8e5af8e835c","trigger_phrase":null,"finetune_id":null,"fits":["pocket","pocket-base"]},"strength":"0.1667","references":[]}','pocket','fp32',64,64,4,0.25,'{"backend": "drawing", "device": "cpu", "batch_size": "1"}','2026-11-25 09:27:28.856439');
INSERT INTO "cells" VALUES('94b3b70b4332987121c60d1b8adc7a99fb522d881d6690b1f383a706306eeb27','72b18da5db322f08597a14740d91c99be05fb0b776c55f30a9de23f34476b2aa.png','{"weights":"pocket","precision":"fp32","prompt":"a red fox","seed":7,"width":64,"height":64,"steps":4,"guidance":1.0,"lora":{"name":"style","path":"/home/of/someone/loras/style.safetensors","sha256":"b6e8b2f8f22ddb41ceaf687879319903c2bdcf641658dfc1cf10e8e5af8e835c","trigger_phrase":null,"finetune_id":null,"fits":["pocket","pocket-base"]},"strength":"1","references":[]}','pocket','fp32',64,64,4,0.25,'{"backend": "drawing", "device": "cpu", "batch_size": "1"}','2026-11-25 09:27:29.073086');
INSERT INTO "cells" VALUES('7e65d973a44357a956145e0d43d23c78ff3768089fe0ce94e96dc192d086d3bf','23d874c47e378cf3232e4495cd95701f847c6d11c035a21cbcaf5b8d2caa3871.png','{"weights":"pocket","precision":"fp32","prompt":"a red fox","seed":7,"width":64,"height":64,"steps":4,"guidance":1.0,"lora":{"name":"subject","path":"/home/of/someone/loras/subject.safetensors","sha256":"ea180c1a7b72240c02803ef883ee832eea01e5563b8f65b08f1f4129c239cdce","trigger_phrase":null,"finetune_id":null,"fits":["pocket","pocket-base"]},"strength":"0.1667","references":[]}','pocket','fp32',64,64,4,0.25,'{"backend": "drawing", "device": "cpu", "batch_size": "1"}','2026-11-25 09:27:29.411251');
INSERT INTO "cells" VALUES('cde22849c9a319648a8d565e2d206dbac1ad51948c483a8f9d15bac0a4872cad','c62af421f981b6b7d0910c39e2ba4bcb03eae34f3db23033c3ad1255be509db3.png','{"weights":"pocket","precision":"fp32","prompt":"a red fox","seed":7,"width":64,"height":64,"steps":4,"guidance":1.0,"lora":{"name":"subject","path":"/home/of/someone/loras/subject.safetensors","sha256":"ea180c1a7b72240c02803ef883ee832eea01e5563b8f65b08f1f4129c239cdce","trigger_phrase":null,"finetune_id":null,"fits":["pocket","pocket-base"]},"strength":"1","references":[]}','pocket','fp32',64,64,4,0.25,'{"backend": "drawing", "device": "cpu", "batch_size": "1"}','2026-11-25 09:27:29.701853');
INSERT INTO "cells" VALUES('df8082ce8cbfe0cbf9da04b5fa2f88c447551546563a1b669be676de3165e8d9','374ab6b5fea424a90e929ef61910905fbb4036b991fe7cecc250b579c81cd3c0.png','{"weights":"pocket","precision":"fp32","prompt":"Ein Bär ÄÖ","seed":7,"width":64,"height":64,"steps":4,"guidance":1.0,"lora":null,"strength":"0","references":[]}','pocket','fp32',64,64,4,0.25,'{"backend": "drawing", "device": "cpu", "batch_size": "1"}','2026-11-25 09:27:30.291071');
INSERT INTO "cells" VALUES('f51dfc0ce3e827ec411de921a5460a5ae765b35114ac19e9838c34501540aef6','1e2489864dbb41732f57f79ce85a87dc01f95fd7b091751b2719218f8ceb168e.png','{"weights":"pocket","precision":"fp32","prompt":"Ein Bär ÄÖ","seed":7,"width":64,"height":64,"steps":4,"guidance":1.0,"lora":{"name":"style","path":"/home/of/someone/loras/style.safetensors","sha256":"b6e8b2f8f22ddb41ceaf687879319903c2bdcf641658dfc1cf10e8e5af8e835c","trigger_phrase":null,"finetune_id":null,"fits":["pocket","pocket-base"]},"strength":"1","references":[]}','pocket','fp32',64,64,4,0.25,'{"backend": "drawing", "device": "cpu", "batch_size": "1"}','2026-11-25 09:27:30.534838');
INSERT INTO "cells" VALUES('1c6c4683df6c8abd8aa48fd3044dd7cf1fc2941c7f951c198773c6d7d3449d51','311ce13f9b3b9d0d9575f9f714f93db9e8e0bb1d8b91d3bd32dc01d4878e9390.png','{"weights":"pocket","precision":"fp32","prompt":"Ein Bär ÄÖ","seed":9,"width":64,"height":64,"steps":4,"guidance":1.0,"lora":null,"strength":"0","references":[]}','pocket','fp32',64,64,4,0.25,'{"backend": "drawing", "device": "cpu", "batch_size": "1"}','2026-11-25 09:27:30.794860');
INSERT INTO "cells" VALUES('e16903cdd31d1d5232aba73e3b4749bcb330edb14eb0cbdc630359c7f985dc35','52b87482fcfd4535c0ae0ace9df61cd83ab9ca2b53a4aaa046a77ef193c48a35.png','{"weights":"pocket","precision":"fp32","prompt":"a fox, ohwx, at night","seed":4294967295,"width":64,"height":64,"steps":4,"guidance":1.0,"lora":{"name":"style","path":"/home/of/someone/loras/style.safetensors","sha256":"b6e8b2f8f22ddb41ceaf687879319903c2bdcf641658dfc1cf10e8e5af8e835c","trigger_phrase":"ohwx","finetune_id":null,"fits":["pocket","pocket-base"]},"strength":"1","references":[]}','pocket','fp32',64,64,4,0.25,'{"backend": "drawing", "device": "cpu", "batch_size": "1"}','2026-11-25 09:27:31.353159');
INSERT INTO "cells" VALUES('baad6b6300bfa42db26156a9bdf3a5259e10f9181a95e558280e88ac0b400b09','3c5a05dd1ffac5d42dd7dcc2f94be3886dabfe974b616a95ce6e16ffeb920762.png','{"weights":"pocket","precision":"fp32","prompt":"a fox, at night","seed":4294967295,"width":64,"height":64,"steps":4,"guidance":1.0,"lora":{"name":"style","path":"/home/of/someone/loras/style.safetensors","sha256":"b6e8b2f8f22ddb41ceaf687879319903c2bdcf641658dfc1cf10e8e5af8e835c","trigger_phrase":"ohwx","finetune_id":null,"fits":["pocket","pocket-base"]},"strength":"1","references":[]}','pocket','fp32',64,64,4,0.25,'{"backend": "drawing", "device": "cpu", "batch_size": "1"}','2026-11-25 09:27:31.589090');
INSERT INTO "cells" VALUES('5219b682d4d988140d752c5928b1031ae34b1533913d16594671e79731d727d4','a1034cdcc8c4b967a13d6cb0a612f3e33aaad14b7cb280ff5e7b701556c4df4d.png','{"weights":"pocket","precision":"fp32","prompt":"nothing but the base","seed":1,"width":64,"height":64,"steps":4,"guidance":1.0,"lora":null,"strength":"0","references":[]}','pocket','fp32',64,64,4,0.25,'{"backend": "drawing", "device": "cpu", "batch_size": "1"}','2026-11-25 09:27:31.875528');
CREATE TABLE controls (
	reference VARCHAR NOT NULL, 
	lora_sha256 VARCHAR NOT NULL, 
	difference INTEGER NOT NULL, 
	tolerance INTEGER NOT NULL, 
	PRIMARY KEY (reference, lora_sha256), 
	FOREIGN KEY(reference) REFERENCES cells (identity)
);
INSERT INTO "controls" VALUES('c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','b6e8b2f8f22ddb41ceaf687879319903c2bdcf641658dfc1cf10e8e5af8e835c',0,0);
INSERT INTO "controls" VALUES('c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','ea180c1a7b72240c02803ef883ee832eea01e5563b8f65b08f1f4129c239cdce',0,0);
INSERT INTO "controls" VALUES('df8082ce8cbfe0cbf9da04b5fa2f88c447551546563a1b669be676de3165e8d9','b6e8b2f8f22ddb41ceaf687879319903c2bdcf641658dfc1cf10e8e5af8e835c',0,0);
CREATE TABLE deliveries (
	task_id VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	due DOUBLE NOT NULL, 
	attempts JSON NOT NULL, 
	PRIMARY KEY (task_id), 
	FOREIGN KEY(task_id) REFERENCES tasks (id)
);
CREATE TABLE finetunes (
	id VARCHAR NOT NULL, 
	organization_id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	weights VARCHAR NOT NULL, 
	precision VARCHAR, 
	trigger_phrase VARCHAR, 
	blob VARCHAR NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	created DOUBLE NOT NULL, 
	updated DOUBLE NOT NULL, deleted DOUBLE, 
	PRIMARY KEY (id), 
	UNIQUE (organization_id, name), 
	FOREIGN KEY(organization_id) REFERENCES organizations (id)
);
CREATE TABLE grants (
	finetune_id VARCHAR NOT NULL, 
	organization_id VARCHAR NOT NULL, 
	created DOUBLE NOT NULL, 
	PRIMARY KEY (finetune_id, organization_id), 
	FOREIGN KEY(finetune_id) REFERENCES finetunes (id) ON DELETE CASCADE
);
CREATE TABLE ledger (
	number INTEGER NOT NULL, 
	organization_id VARCHAR NOT NULL, 
	task_id VARCHAR, 
	millicredits BIGINT NOT NULL, 
	note VARCHAR NOT NULL, 
	created DOUBLE NOT NULL, 
	PRIMARY KEY (number), 
	FOREIGN KEY(organization_id) REFERENCES organizations (id), 
	UNIQUE (task_id)
);
CREATE TABLE organizations (
	id VARCHAR NOT NULL, 
	created DOUBLE NOT NULL, 
	metered BOOLEAN NOT NULL, 
	served DOUBLE NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE presets (
	organization VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	form TEXT NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (organization, name)
);
CREATE TABLE ratings (
	run_id VARCHAR NOT NULL, 
	position INTEGER NOT NULL, 
	rating INTEGER, 
	note TEXT NOT NULL, 
	PRIMARY KEY (run_id, position), 
	FOREIGN KEY(run_id, position) REFERENCES run_cells (run_id, position)
);
INSERT INTO "ratings" VALUES('run-2f5cc6e894f5db0d',1,4,'Schön SCHARF');
INSERT INTO "ratings" VALUES('run-b7b8deafc7976980',0,NULL,'no opinion');
CREATE TABLE run_cells (
	run_id VARCHAR NOT NULL, 
	position INTEGER NOT NULL, 
	identity VARCHAR NOT NULL, 
	error TEXT, deleted DATETIME, 
	PRIMARY KEY (run_id, position), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
);
INSERT INTO "run_cells" VALUES('run-2f5cc6e894f5db0d',0,'c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e',NULL,NULL);
INSERT INTO "run_cells" VALUES('run-2f5cc6e894f5db0d',1,'820ef992340a18dac2b53a8fd2267fff93eb1e6eeb5e3b63bd6470c5f4c7214e',NULL,NULL);
INSERT INTO "run_cells" VALUES('run-2f5cc6e894f5db0d',2,'94b3b70b4332987121c60d1b8adc7a99fb522d881d6690b1f383a706306eeb27',NULL,'2026-11-25 09:27:32.435409');
INSERT INTO "run_cells" VALUES('run-2f5cc6e894f5db0d',3,'c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e',NULL,NULL);
INSERT INTO "run_cells" VALUES('run-2f5cc6e894f5db0d',4,'7e65d973a44357a956145e0d43d23c78ff3768089fe0ce94e96dc192d086d3bf',NULL,NULL);
INSERT INTO "run_cells" VALUES('run-2f5cc6e894f5db0d',5,'cde22849c9a319648a8d565e2d206dbac1ad51948c483a8f9d15bac0a4872cad',NULL,NULL);
INSERT INTO "run_cells" VALUES('run-b7b8deafc7976980',0,'df8082ce8cbfe0cbf9da04b5fa2f88c447551546563a1b669be676de3165e8d9',NULL,NULL);
INSERT INTO "run_cells" VALUES('run-b7b8deafc7976980',1,'f51dfc0ce3e827ec411de921a5460a5ae765b35114ac19e9838c34501540aef6',NULL,NULL);
INSERT INTO "run_cells" VALUES('run-b7b8deafc7976980',2,'1c6c4683df6c8abd8aa48fd3044dd7cf1fc2941c7f951c198773c6d7d3449d51',NULL,NULL);
INSERT INTO "run_cells" VALUES('run-b7b8deafc7976980',3,'f1008dc717b47cae39394b65d888404109cc9c3fd74ff2b7d8b76ffb12108a59','Out of MEMORY.',NULL);
INSERT INTO "run_cells" VALUES('run-e383f3779a14549a',0,'e16903cdd31d1d5232aba73e3b4749bcb330edb14eb0cbdc630359c7f985dc35',NULL,NULL);
INSERT INTO "run_cells" VALUES('run-e383f3779a14549a',1,'baad6b6300bfa42db26156a9bdf3a5259e10f9181a95e558280e88ac0b400b09',NULL,NULL);
INSERT INTO "run_cells" VALUES('run-951d43a127b437c7',0,'5219b682d4d988140d752c5928b1031ae34b1533913d16594671e79731d727d4',NULL,NULL);
CREATE TABLE runs (
	id VARCHAR NOT NULL, 
	created DATETIME NOT NULL, 
	spec TEXT NOT NULL, 
	verdict TEXT, organization VARCHAR DEFAULT 'local' NOT NULL, origin VARCHAR DEFAULT 'sweep' NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "runs" VALUES('run-2f5cc6e894f5db0d','2026-11-25 09:27:27.652034','{"targets":[{"backend":"drawing","weights":"pocket","precision":"fp32","digest":"d1","steps":4,"guidance":1.0}],"loras":[{"name":"style","path":"/home/of/someone/loras/style.safetensors","sha256":"b6e8b2f8f22ddb41ceaf687879319903c2bdcf641658dfc1cf10e8e5af8e835c","trigger_phrase":null,"finetune_id":null,"fits":["pocket","pocket-base"]},{"name":"subject","path":"/home/of/someone/loras/subject.safetensors","sha256":"ea180c1a7b72240c02803ef883ee832eea01e5563b8f65b08f1f4129c239cdce","trigger_phrase":null,"finetune_id":null,"fits":["pocket","pocket-base"]}],"prompts":["a red fox"],"seeds":[7],"strengths":["0","0.1667","1"],"width":64,"height":64,"references":[],"triggers":[]}','{"ok":true,"summary":"Every strength acted, and strength 0 is the base model.","findings":["style at strength 0 equals the base image, pixel for pixel.","subject at strength 0 equals the base image, pixel for pixel."]}','local','sweep');
INSERT INTO "runs" VALUES('run-b7b8deafc7976980','2026-11-25 09:27:29.995980','{"loras": [{"name": "style", "path": "/home/of/someone/loras/style.safetensors", "sha256": "b6e8b2f8f22ddb41ceaf687879319903c2bdcf641658dfc1cf10e8e5af8e835c", "trigger_phrase": null, "finetune_id": null, "fits": ["pocket", "pocket-base"]}], "prompts": ["Ein B\u00e4r \u00c4\u00d6"], "seeds": [7, 9], "strengths": ["0", "1"], "width": 64, "height": 64, "references": [], "triggers": [], "backend": "drawing", "weights": "pocket", "precision": "fp32", "digest": "d1", "steps": 4, "guidance": 1.0}','{"ok":true,"summary":"Every strength so far acted, and strength 0 is the base model.","findings":["style at strength 0 equals the base image, pixel for pixel."]}','local','playground');
INSERT INTO "runs" VALUES('run-e383f3779a14549a','2026-11-25 09:27:31.183593','{"targets":[{"backend":"drawing","weights":"pocket","precision":"fp32","digest":"d1","steps":4,"guidance":1.0}],"loras":[{"name":"style","path":"/home/of/someone/loras/style.safetensors","sha256":"b6e8b2f8f22ddb41ceaf687879319903c2bdcf641658dfc1cf10e8e5af8e835c","trigger_phrase":"ohwx","finetune_id":null,"fits":["pocket","pocket-base"]}],"prompts":["a fox, ohwx, at night"],"seeds":[4294967295],"strengths":["1"],"width":64,"height":64,"references":[],"triggers":[{"phrase":"ohwx","there":true},{"phrase":"ohwx","there":false}]}','{"ok":null,"summary":"Not judged: there are no two strengths to compare yet.","findings":[]}','local','sweep');
INSERT INTO "runs" VALUES('run-951d43a127b437c7','2026-11-25 09:27:31.757139','{"targets":[{"backend":"drawing","weights":"pocket","precision":"fp32","digest":"d1","steps":4,"guidance":1.0}],"loras":[],"prompts":["nothing but the base"],"seeds":[1],"strengths":["0"],"width":64,"height":64,"references":[],"triggers":[]}','{"ok":null,"summary":"Not judged: there are no two strengths to compare yet.","findings":[]}','local','sweep');
CREATE TABLE scores (
	identity VARCHAR NOT NULL, 
	reference VARCHAR NOT NULL, 
	metric VARCHAR NOT NULL, 
	value FLOAT NOT NULL, 
	PRIMARY KEY (identity, reference, metric), 
	FOREIGN KEY(identity) REFERENCES cells (identity), 
	FOREIGN KEY(reference) REFERENCES cells (identity)
);
INSERT INTO "scores" VALUES('c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','ssim',1.0);
INSERT INTO "scores" VALUES('c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','mean_difference',0.0);
INSERT INTO "scores" VALUES('820ef992340a18dac2b53a8fd2267fff93eb1e6eeb5e3b63bd6470c5f4c7214e','c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','ssim',9.91924091213124192734e-01);
INSERT INTO "scores" VALUES('820ef992340a18dac2b53a8fd2267fff93eb1e6eeb5e3b63bd6470c5f4c7214e','c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','mean_difference',0.21533203125);
INSERT INTO "scores" VALUES('94b3b70b4332987121c60d1b8adc7a99fb522d881d6690b1f383a706306eeb27','c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','ssim',9.49416789735721411425e-01);
INSERT INTO "scores" VALUES('94b3b70b4332987121c60d1b8adc7a99fb522d881d6690b1f383a706306eeb27','c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','mean_difference',5.490966796875);
INSERT INTO "scores" VALUES('7e65d973a44357a956145e0d43d23c78ff3768089fe0ce94e96dc192d086d3bf','c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','ssim',9.93314621830606814256e-01);
INSERT INTO "scores" VALUES('7e65d973a44357a956145e0d43d23c78ff3768089fe0ce94e96dc192d086d3bf','c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','mean_difference',0.13916015625);
INSERT INTO "scores" VALUES('cde22849c9a319648a8d565e2d206dbac1ad51948c483a8f9d15bac0a4872cad','c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','ssim',9.52964409059092854015e-01);
INSERT INTO "scores" VALUES('cde22849c9a319648a8d565e2d206dbac1ad51948c483a8f9d15bac0a4872cad','c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','mean_difference',3.548583984375);
INSERT INTO "scores" VALUES('df8082ce8cbfe0cbf9da04b5fa2f88c447551546563a1b669be676de3165e8d9','df8082ce8cbfe0cbf9da04b5fa2f88c447551546563a1b669be676de3165e8d9','ssim',1.0);
INSERT INTO "scores" VALUES('df8082ce8cbfe0cbf9da04b5fa2f88c447551546563a1b669be676de3165e8d9','df8082ce8cbfe0cbf9da04b5fa2f88c447551546563a1b669be676de3165e8d9','mean_difference',0.0);
INSERT INTO "scores" VALUES('f51dfc0ce3e827ec411de921a5460a5ae765b35114ac19e9838c34501540aef6','df8082ce8cbfe0cbf9da04b5fa2f88c447551546563a1b669be676de3165e8d9','ssim',9.50325424277142172257e-01);
INSERT INTO "scores" VALUES('f51dfc0ce3e827ec411de921a5460a5ae765b35114ac19e9838c34501540aef6','df8082ce8cbfe0cbf9da04b5fa2f88c447551546563a1b669be676de3165e8d9','mean_difference',5.490966796875);
INSERT INTO "scores" VALUES('1c6c4683df6c8abd8aa48fd3044dd7cf1fc2941c7f951c198773c6d7d3449d51','1c6c4683df6c8abd8aa48fd3044dd7cf1fc2941c7f951c198773c6d7d3449d51','ssim',1.0);
INSERT INTO "scores" VALUES('1c6c4683df6c8abd8aa48fd3044dd7cf1fc2941c7f951c198773c6d7d3449d51','1c6c4683df6c8abd8aa48fd3044dd7cf1fc2941c7f951c198773c6d7d3449d51','mean_difference',0.0);
INSERT INTO "scores" VALUES('5219b682d4d988140d752c5928b1031ae34b1533913d16594671e79731d727d4','5219b682d4d988140d752c5928b1031ae34b1533913d16594671e79731d727d4','ssim',1.0);
INSERT INTO "scores" VALUES('5219b682d4d988140d752c5928b1031ae34b1533913d16594671e79731d727d4','5219b682d4d988140d752c5928b1031ae34b1533913d16594671e79731d727d4','mean_difference',0.0);
INSERT INTO "scores" VALUES('c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','c7ea9e78dce65a5a7302a5cd26306c599dd4e1aa194c775f300f2e477d3b722e','clip',12.5);
CREATE TABLE secrets (
	name VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE tasks (
	number INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	organization_id VARCHAR NOT NULL, 
	endpoint VARCHAR NOT NULL, 
	finetune VARCHAR, 
	status VARCHAR NOT NULL, 
	request TEXT NOT NULL, 
	lora_blob VARCHAR, 
	output_format VARCHAR NOT NULL, 
	millicredits BIGINT NOT NULL, 
	base_url VARCHAR NOT NULL, 
	webhook_url VARCHAR, 
	webhook_secret VARCHAR, 
	created DOUBLE NOT NULL, 
	claimed_by VARCHAR, 
	claimed_until DOUBLE NOT NULL, 
	attempts INTEGER NOT NULL, 
	started DOUBLE, 
	ended DOUBLE, 
	expires DOUBLE, 
	result_blob VARCHAR, 
	details JSON, 
	PRIMARY KEY (number), 
	UNIQUE (id), 
	FOREIGN KEY(organization_id) REFERENCES organizations (id)
);
CREATE INDEX ix_runs_created ON runs (created);
CREATE INDEX ix_cells_speed ON cells (weights, precision, width, height, steps, created);
CREATE INDEX ix_run_cells_identity ON run_cells (identity);
CREATE INDEX ix_api_keys_organization_id ON api_keys (organization_id);
CREATE INDEX ix_ledger_organization_id ON ledger (organization_id);
CREATE INDEX ix_finetunes_blob ON finetunes (blob);
CREATE INDEX ix_grants_organization_id ON grants (organization_id);
CREATE INDEX ix_tasks_lora_blob ON tasks (lora_blob);
CREATE INDEX ix_tasks_expires ON tasks (expires);
CREATE INDEX ix_tasks_waiting ON tasks (status, organization_id, number);
CREATE INDEX ix_deliveries_due ON deliveries (state, due);
CREATE INDEX ix_runs_organization ON runs (organization, created);
COMMIT;
