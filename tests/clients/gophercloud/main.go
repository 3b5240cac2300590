// A client of clustercert over gophercloud: logs in, reads the catalog, lists clusters, and gets a kubeconfig.
//
// Prints what it found as JSON. Its input is the environment: OS_AUTH_URL, OS_USERNAME, OS_PASSWORD,
// OS_DOMAIN_ID, OS_TENANT_NAME (the project), OS_REGION_NAME; CLUSTER_ID; CLIENT_CA, a PEM file.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/url"
	"os"

	"github.com/gophercloud/gophercloud"
	"github.com/gophercloud/gophercloud/openstack"
	"github.com/gophercloud/gophercloud/openstack/identity/v3/tokens"
	"github.com/gophercloud/gophercloud/openstack/identity/v3/users"
)

// The fields that client-go reads. []byte is base64 in JSON.
type kubeconfig struct {
	Kind           string `json:"kind"`
	APIVersion     string `json:"apiVersion"`
	CurrentContext string `json:"current-context"`
	Clusters       []struct {
		Name    string `json:"name"`
		Cluster struct {
			Server                   string `json:"server"`
			CertificateAuthorityData []byte `json:"certificate-authority-data"`
			InsecureSkipTLSVerify    bool   `json:"insecure-skip-tls-verify"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		Name string `json:"name"`
		User struct {
			ClientCertificateData []byte `json:"client-certificate-data"`
			ClientKeyData         []byte `json:"client-key-data"`
		} `json:"user"`
	} `json:"users"`
	Contexts []struct {
		Name    string `json:"name"`
		Context struct {
			Cluster string `json:"cluster"`
			User    string `json:"user"`
		} `json:"context"`
	} `json:"contexts"`
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	auth, err := openstack.AuthOptionsFromEnv()
	check(err)
	provider, err := openstack.AuthenticatedClient(auth)
	check(err)

	catalog, err := provider.GetAuthResult().(tokens.CreateResult).ExtractServiceCatalog()
	check(err)
	var types []string
	for _, service := range catalog.Entries {
		types = append(types, service.Type)
	}

	endpoints := gophercloud.EndpointOpts{
		Type: "ccev2.0", Region: os.Getenv("OS_REGION_NAME"), Availability: gophercloud.AvailabilityPublic,
	}
	address, err := provider.EndpointLocator(endpoints)
	check(err)
	identity, err := openstack.NewIdentityV3(provider, gophercloud.EndpointOpts{Region: endpoints.Region})
	check(err)
	owner, err := provider.GetAuthResult().(tokens.CreateResult).ExtractUser()
	check(err)
	user, err := users.Get(identity, owner.ID).Extract()
	check(err)
	project, err := provider.GetAuthResult().(tokens.CreateResult).ExtractProject()
	check(err)

	cce := &gophercloud.ServiceClient{ProviderClient: provider, Endpoint: address, Type: "ccev2.0"}
	clusters := cce.ServiceURL("api", "v3", "projects", project.ID, "clusters")
	var listed struct {
		Items []struct {
			Metadata struct {
				UID  string `json:"uid"`
				Name string `json:"name"`
			} `json:"metadata"`
		} `json:"items"`
	}
	_, err = cce.Get(clusters, &listed, nil)
	check(err)

	var issued kubeconfig
	path := clusters + "/" + url.PathEscape(os.Getenv("CLUSTER_ID")) + "/clustercert"
	body := map[string]int{"duration": 1}
	_, err = cce.Post(path, body, &issued, &gophercloud.RequestOpts{OkCodes: []int{200}})
	check(err)
	var missing interface{}
	_, err = cce.Get(clusters+"/00000000-0000-4000-8000-000000000000", &missing, nil)
	_, isMissing := err.(gophercloud.ErrDefault404)

	leaf := verify(issued)
	names := []string{}
	for _, cluster := range listed.Items {
		names = append(names, cluster.Metadata.UID)
	}
	check(json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"types": types, "user": user.Name, "user_id": user.ID, "domain_id": user.DomainID, "clusters": names,
		"is_missing": isMissing, "common_name": leaf.Subject.CommonName, "contexts": len(issued.Contexts),
		"current_context": issued.CurrentContext, "server": issued.Clusters[0].Cluster.Server,
		"hours": int(leaf.NotAfter.Sub(leaf.NotBefore).Hours()),
	}))
}

// verify checks that the key belongs to the leaf, and the chain to the client CA.
func verify(issued kubeconfig) *x509.Certificate {
	credential := issued.Users[0].User
	pair, err := tls.X509KeyPair(credential.ClientCertificateData, credential.ClientKeyData)
	check(err)
	pem, err := os.ReadFile(os.Getenv("CLIENT_CA"))
	check(err)
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		check(fmt.Errorf("no certificate in CLIENT_CA"))
	}
	for _, der := range pair.Certificate[1:] {
		certificate, err := x509.ParseCertificate(der)
		check(err)
		intermediates.AddCert(certificate)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	check(err)
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	check(err)
	return leaf
}
