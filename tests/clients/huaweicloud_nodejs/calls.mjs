// Calls the CCE API with Huawei Cloud's SDK for NodeJS, and checks each answer against the types that the SDK declares.
// Run in the folder where package.json is installed. Reads the configuration as JSON from its standard input, and prints
// the answers as JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.cwd(), "package.json"));
const cce = require("@huaweicloud/huaweicloud-sdk-cce");
const { BasicCredentials } = require("@huaweicloud/huaweicloud-sdk-core");
const ts = require("typescript");

const { url, accessKey, secretKey, projectId, clusterId, missingClusterId, userAgent } = JSON.parse(readFileSync(0));

const declarations = require
  .resolve("@huaweicloud/huaweicloud-sdk-cce")
  .replace(/[^/]*$/, "v3/CceClient.d.ts");
const program = ts.createProgram([declarations], { strict: true, moduleResolution: ts.ModuleResolutionKind.Node10 });
const checker = program.getTypeChecker();
const clientSymbol = checker
  .getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(declarations)))
  .find((each) => each.name === "CceClient");
const clientType = checker.getDeclaredTypeOfSymbol(clientSymbol);

// The type of what the promise of a method gives.
function answerType(method) {
  const symbol = clientType.getProperty(method);
  const [signature] = checker.getTypeOfSymbol(symbol).getCallSignatures();
  return checker.getAwaitedType(signature.getReturnType());
}

// What differs between a value and its declared type. Undeclared fields are allowed.
function problems(value, type, where) {
  type = checker.getNonNullableType(type);
  if (type.flags & ts.TypeFlags.Any) return [`${where}: no type is declared`];
  if (type.flags & (ts.TypeFlags.StringLike | ts.TypeFlags.EnumLike | ts.TypeFlags.Union)) {
    const allowed = type.isUnion() ? type.types.map((each) => each.value) : [];
    if (allowed.every((each) => each === undefined) && type.isUnion()) return booleanProblems(value, where);
    // A value that the service does not know is an empty string.
    const fits = typeof value === "string" && (!allowed.length || value === "" || allowed.includes(value));
    return fits ? [] : [`${where}: ${JSON.stringify(value)} is no ${checker.typeToString(type)}`];
  }
  if (type.flags & ts.TypeFlags.NumberLike) return typeof value === "number" ? [] : [`${where}: no number`];
  if (type.flags & ts.TypeFlags.BooleanLike) return booleanProblems(value, where);
  if (checker.isArrayType(type)) {
    if (!Array.isArray(value)) return [`${where}: no array`];
    const [element] = checker.getTypeArguments(type);
    return value.flatMap((each, index) => problems(each, element, `${where}[${index}]`));
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [`${where}: no object`];
  const index = checker.getIndexTypeOfType(type, ts.IndexKind.String);
  if (index) return Object.entries(value).flatMap(([name, each]) => problems(each, index, `${where}.${name}`));
  return type.getProperties().flatMap((property) => propertyProblems(value, type, property, where));
}

function booleanProblems(value, where) {
  return typeof value === "boolean" ? [] : [`${where}: no boolean`];
}

function propertyProblems(value, type, property, where) {
  if (property.flags & (ts.SymbolFlags.Method | ts.SymbolFlags.Accessor)) return [];
  const [declaration] = property.declarations;
  const isOptional = Boolean(property.flags & ts.SymbolFlags.Optional);
  // An HTTP status and not a field of the body.
  if (property.name === "httpStatusCode") return [];
  if (!(property.name in value)) return isOptional ? [] : [`${where}.${property.name}: missing`];
  let declared = checker.getTypeOfSymbol(property);
  if (ts.getCombinedModifierFlags(declaration) & ts.ModifierFlags.Private) {
    // Only the accessor has the type: `currentContext` of the field `current-context`.
    const camel = property.name.replace(/[-_](\w)/g, (_, letter) => letter.toUpperCase());
    declared = checker.getTypeOfSymbol(type.getProperty(camel.replace(/^./, (first) => first.toLowerCase())));
  }
  return problems(value[property.name], declared, `${where}.${property.name}`);
}

const credential = new BasicCredentials().withAk(accessKey).withSk(secretKey).withProjectId(projectId);
const client = cce.CceClient.newBuilder()
  .withCredential(credential)
  .withEndpoint(url)
  .withOptions(userAgent ? { customUserAgent: userAgent } : {})
  .build();
const JSON_TYPE = "application/json";

const calls = {
  showVersion: () => client.showVersion(),
  listClusters: () => client.listClusters(new cce.ListClustersRequest(JSON_TYPE)),
  showCluster: (id) => client.showCluster(new cce.ShowClusterRequest(id, JSON_TYPE)),
  showClusterEndpoints: (id) => client.showClusterEndpoints(new cce.ShowClusterEndpointsRequest(id)),
  createKubernetesClusterCert: (id) =>
    client.createKubernetesClusterCert(
      new cce.CreateKubernetesClusterCertRequest(id, JSON_TYPE).withBody(new cce.CertDuration().withDuration(1)),
    ),
};

const answers = {};
for (const [method, call] of Object.entries(calls)) {
  const answer = await call(clusterId);
  answers[method] = { status: answer.httpStatusCode, problems: problems(answer, answerType(method), method), answer };
}
let refusal;
try {
  await calls.showCluster(missingClusterId);
} catch (error) {
  const { httpStatusCode, errorCode, errorMsg, requestId } = error;
  refusal = { status: httpStatusCode, code: errorCode, message: errorMsg, requestId };
}
console.log(JSON.stringify({ answers, refusal }));
